"""GGUF, which llama.cpp and what is built on it run: through the package gguf.

Norms and biases stay in float32, as llama.cpp's own conversion has them. Llama's queries and keys
are turned to the order that its rotation of neighbouring rows wants.
"""

import json
import math
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from torch import Tensor

from skip2bench.data.chat import TOKENIZER_FILE, read_settings
from skip2bench.errors import Skip2BenchError
from skip2bench.export.chat import Chat
from skip2bench.models.gguf_rows import interleave_halves, split_halves
from skip2bench.models.tokenizer import load_tokenizer

QUANTISED = "q8_0"
BLOCK = 32
"""Numbers that share a scale."""
_TYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    QUANTISED: "Q8_0",
}
_IN_BLOCK = {
    "norm_1": "attn_norm",
    "norm_2": "ffn_norm",
    "attn.proj": "attn_output",
    "attn.norm_q": "attn_q_norm",
    "attn.norm_k": "attn_k_norm",
    "mlp.fc_1": "ffn_gate",
    "mlp.fc_2": "ffn_up",
    "mlp.proj": "ffn_down",
}
_OUTSIDE = {
    "transformer.wte.weight": "token_embd.weight",
    "transformer.ln_f.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_QUERIES = ("attn_q", "attn_k", "attn_v")
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""gguf.TokenType."""


def check_can_write(config: Config, base_folder: Path) -> None:
    """Check that a model has a form in GGUF.

    Raises:
        Skip2BenchError: the package is missing, or llama.cpp has no such model or tokenizer here.
    """
    if find_spec("gguf") is None:
        raise Skip2BenchError(
            "export --to gguf needs the package gguf; pip install 'skip2bench[gguf]'"
        )
    _architecture(config)
    _describe_tokenizer(base_folder, config)


def _architecture(config: Config) -> str:
    """GGUF's name of it.

    Raises:
        Skip2BenchError: it is none of those that are written here.
    """
    is_llama = (
        config.norm_class_name == "RMSNorm"
        and config.mlp_class_name == "LLaMAMLP"
        and not (config.bias or config.lm_head_bias or config.parallel_residual)
        and not (config.post_attention_norm or config.post_mlp_norm)
        and config.rotary_percentage == 1.0
        and not config.sliding_window_size
        and config.norm_qk_type == "default"
        and not config.name.lower().startswith(("phi", "olmo"))
    )
    if not is_llama:
        raise Skip2BenchError(
            f"{config.name} is no model of the Llama or Qwen kind, which --to gguf writes; export "
            "--to hf, and convert that with llama.cpp's convert_hf_to_gguf.py"
        )
    if config.norm_qk:
        return "qwen3"
    # llama.cpp's qwen2 has no size of a head, and its llama has biases where a file has them
    is_qwen2 = config.attn_bias and config.n_head * (config.head_size or 0) == config.n_embd
    return "qwen2" if is_qwen2 else "llama"


def write_gguf(
    path: Path,
    config: Config,
    weights: dict[str, Tensor],
    base_folder: Path,
    dtype: str,
    name: str,
    chat: Chat,
) -> None:
    """Write a model with its tokenizer.

    Args:
        path: The file.
        config: LitGPT's.
        weights: LitGPT's state dict.
        base_folder: With the tokenizer.
        dtype: float32, float16, bfloat16 or q8_0.
        name: Of the model.
        chat: What stands around messages.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.quants import quantize

    kind = _architecture(config)
    writer = GGUFWriter(path, kind)
    writer.add_name(name)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_query_groups)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.rope_n_elem)
    writer.add_rope_freq_base(float(config.rope_base))
    writer.add_vocab_size(config.padded_vocab_size)
    plain = _TYPES[dtype]
    file_type = "ALL_F32" if plain == "F32" else f"MOSTLY_{plain}"
    writer.add_file_type(LlamaFileType[file_type])
    _add_tokenizer(writer, _describe_tokenizer(base_folder, config), chat)
    for tensor_name, value in _named(config, weights, kind):
        is_wide = value.dim() > 1 and value.size(-1) % BLOCK == 0
        wanted = plain if is_wide or (value.dim() > 1 and plain != "Q8_0") else "F32"
        type_ = GGMLQuantizationType[wanted]
        data = quantize(value.float().numpy(), type_)
        writer.add_tensor(tensor_name, data, raw_dtype=type_)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _named(config: Config, weights: dict[str, Tensor], kind: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors by GGUF's names."""
    if (factors := _rope_factors(config)) is not None:
        yield "rope_freqs.weight", factors
    size = config.head_size
    assert size is not None
    assert config.n_query_groups is not None
    heads = (config.n_head, config.n_query_groups, config.n_query_groups)
    for name, value in weights.items():
        if (outside := _OUTSIDE.get(name)) is not None:
            yield outside, value
            continue
        _, _, number, rest = name.split(".", 3)
        part, _, suffix = rest.rpartition(".")
        if part != "attn.qkv":
            yield f"blk.{number}.{_IN_BLOCK[part]}.{suffix}", value
            continue
        rows = torch.split(value, [count * size for count in heads])
        for own, row, count in zip(_QUERIES, rows, heads, strict=True):
            is_turned = kind == "llama" and own != "attn_v"
            turned = interleave_halves(row, count) if is_turned else row
            yield f"blk.{number}.{own}.{suffix}", turned.contiguous()


def _rope_factors(config: Config) -> Tensor | None:
    """Llama 3's: what each frequency is divided by, (head_size / 2,).

    Raises:
        Skip2BenchError: positions are stretched in another way.
    """
    own = config.rope_adjustments
    if own is None and config.rope_condense_ratio == 1:
        return None
    if own is None or "low_freq_factor" not in own:
        raise Skip2BenchError(
            f"{config.name} stretches positions in a way that --to gguf does not write; export "
            "--to hf, and convert that with llama.cpp's convert_hf_to_gguf.py"
        )
    steps = torch.arange(0, config.rope_n_elem, 2, dtype=torch.float64) / config.rope_n_elem
    wavelengths = 2 * math.pi * config.rope_base**steps
    low, high = own["low_freq_factor"], own["high_freq_factor"]
    turns = own["original_max_seq_len"] / wavelengths
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    factors: Tensor = 1 / ((1 - smooth) / own["factor"] + smooth)
    return factors.float()


def read_gguf(path: Path, config: Config) -> dict[str, Tensor]:
    """LitGPT's state dict of what `write_gguf` wrote, de-quantised to float32."""
    from gguf import GGUFReader, dequantize

    kind = _architecture(config)
    found = {
        item.name: torch.from_numpy(dequantize(item.data, item.tensor_type).copy()).float()
        for item in GGUFReader(path).tensors
    }
    result: dict[str, Tensor] = {ours: found[theirs] for ours, theirs in _OUTSIDE.items()}
    assert config.n_query_groups is not None
    heads = dict(
        zip(_QUERIES, (config.n_head, config.n_query_groups, config.n_query_groups), strict=True)
    )
    for number in range(config.n_layer):
        ours, theirs = f"transformer.h.{number}.", f"blk.{number}."
        for part, own in _IN_BLOCK.items():
            if (value := found.get(f"{theirs}{own}.weight")) is not None:
                result[f"{ours}{part}.weight"] = value
        for suffix in ("weight", "bias"):
            rows = {own: found.get(f"{theirs}{own}.{suffix}") for own in _QUERIES}
            parts = [
                split_halves(row, heads[own]) if kind == "llama" and own != "attn_v" else row
                for own, row in rows.items()
                if row is not None
            ]
            if parts:
                result[f"{ours}attn.qkv.{suffix}"] = torch.cat(parts)
    return result


def _add_tokenizer(writer: Any, described: dict[str, Any], chat: Chat) -> None:
    writer.add_tokenizer_model(described["model"])
    if described["pre"] is not None:
        writer.add_tokenizer_pre(described["pre"])
    writer.add_token_list(described["tokens"])
    writer.add_token_types(described["types"])
    if described["model"] == "gpt2":
        writer.add_token_merges(described["merges"])
    else:
        writer.add_token_scores(described["scores"])
        writer.add_add_space_prefix(described["add_prefix_space"])
    for name, number in described["special"].items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(chat.adds_bos)
    if chat.template is not None:
        writer.add_chat_template(chat.template)


def _describe_tokenizer(base_folder: Path, config: Config) -> dict[str, Any]:
    """What GGUF keeps of a tokenizer.

    Raises:
        Skip2BenchError: llama.cpp splits text in another way.
    """
    path = base_folder / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model, added = content["model"], content.get("added_tokens") or []
        vocabulary, merges = model["vocab"], model["merges"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Skip2BenchError(
            f"--to gguf writes tokenizers of a tokenizer.json with pairs of bytes, and "
            f"{str(base_folder)!r} has none; export --to hf"
        ) from error
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    tokens = [f"[PAD{i}]" for i in range(config.padded_vocab_size)]
    types = [_UNUSED] * len(tokens)
    most = max([*vocabulary.values(), *(item["id"] for item in added)])
    if most >= len(tokens):
        raise Skip2BenchError(
            f"the tokenizer in {str(base_folder)!r} has {most + 1:,} tokens, and the model only "
            f"{len(tokens):,}; --to gguf needs one for each: export --to hf"
        )
    for token, number in vocabulary.items():
        tokens[number], types[number] = token, _NORMAL
    for item in added:
        tokens[item["id"]] = item["content"]
        types[item["id"]] = _CONTROL if item.get("special") else _USER
    is_spm = bool(model.get("byte_fallback"))
    if is_spm:
        for token, number in vocabulary.items():
            if re.fullmatch("<0x[0-9A-F]{2}>", token):
                types[number] = _BYTE
        if (unknown := vocabulary.get(model.get("unk_token"))) is not None:
            types[unknown] = _UNKNOWN
    own = load_tokenizer(base_folder)
    settings = read_settings(base_folder / TOKENIZER_FILE)
    return {
        "model": "llama" if is_spm else "gpt2",
        "pre": None if is_spm else _pre_tokenizer(content, base_folder),
        "tokens": tokens,
        "types": types,
        "merges": pairs,
        "scores": _scores(vocabulary, pairs, len(tokens)),
        "add_prefix_space": bool(settings.get("add_prefix_space", True)),
        "special": {"bos": own.bos_id, "eos": own.eos_id},
    }


def _scores(vocabulary: dict[str, int], merges: list[str], size: int) -> list[float]:
    """What merges first scores highest: minus the number of the merge that makes a token."""
    scores = [-1e6] * size
    for order, pair in enumerate(merges):
        made = vocabulary.get(pair.replace(" ", "", 1))
        if made is not None:
            scores[made] = max(scores[made], -float(order))
    return scores


def _pre_tokenizer(content: dict[str, Any], base_folder: Path) -> str:
    """llama.cpp's name of how text is split before bytes are merged.

    Raises:
        Skip2BenchError: it has none for this one.
    """
    steps = content.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    patterns = [str(step.get("pattern", {}).get("Regex", "")) for step in steps]
    has_own_regex = any(s.get("type") == "ByteLevel" and s.get("use_regex", True) for s in steps)
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and has_own_regex:
        return "smollm"
    if kinds == ["ByteLevel"] and has_own_regex:
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and "(?i:" in patterns[0]:
        if r"\p{N}{1,3}" in patterns[0]:
            return "llama-bpe"
        if r"\p{N}" in patterns[0]:
            return "qwen2"
    raise Skip2BenchError(
        f"the tokenizer in {str(base_folder)!r} splits text as no model that --to gguf knows "
        f"({', '.join(map(str, kinds)) or 'not at all'}); export --to hf, and convert that with "
        "llama.cpp's convert_hf_to_gguf.py"
    )
