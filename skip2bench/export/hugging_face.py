"""Hugging Face's form of a model: safetensors and config.json, by LitGPT's own conversion.

What `AutoModelForCausalLM.from_pretrained` loads without code of anybody's.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from litgpt.config import Config
from litgpt.scripts import convert_lit_checkpoint as conversion
from torch import Tensor

from skip2bench.data.chat import CHAT_TEMPLATE_FILE, TOKENIZER_FILE, read_settings
from skip2bench.errors import Skip2BenchError
from skip2bench.export.chat import Chat
from skip2bench.io.whole import let_others_read, write_json
from skip2bench.models.tokenizer import load_tokenizer

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "LICENSE*",
)
_HEAD = "lm_head.weight"


def copy_tokenizer(base_folder: Path, folder: Path) -> None:
    """Copy all that splits text, and what generation begins with."""
    for pattern in _TOKENIZER_FILES:
        for path in base_folder.glob(pattern):
            shutil.copy(path, folder)


def convert_weights(config: Config, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names that Hugging Face has for the architecture.

    Args:
        config: LitGPT's.
        weights: LitGPT's state dict.
    """
    result: dict[str, Tensor] = {}
    name = config.name.lower()
    keep_head: dict[str, Any] = {"untie_weights": False}
    if "falcon" in config.name:
        convert: Any = conversion.copy_weights_falcon
        keep_head = {}
    elif config.name.startswith("Gemma-2-"):
        convert = conversion.copy_weights_gemma_2
    elif config.name.startswith("Gemma-3-"):
        convert = conversion.copy_weights_gemma_3
    elif name.startswith("phi"):
        convert, keep_head = conversion.copy_weights_phi, {}
    elif name.startswith(("qwen2.5", "qwq")):
        convert = conversion.copy_weights_qwen_2_5
    elif name.startswith("olmo-2-"):
        convert = conversion.copy_weights_olmo2
        # its names are still those that LitGPT had for this norm before
        weights = {
            key.replace(".post_attention_norm.", ".norm_2."): value
            for key, value in weights.items()
        }
    elif name.startswith("qwen3"):
        convert = conversion.copy_weights_qwen_3
    elif config.mlp_class_name in ("LLaMAMLP", "GemmaMLP", "LLaMAMoE"):
        convert = conversion.copy_weights_llama
    else:
        convert, keep_head = conversion.copy_weights_gpt_neox, {}
    convert(config, result, weights, **keep_head)
    if name.startswith("phi-4") and _HEAD in weights:  # which LitGPT leaves out
        result.setdefault(_HEAD, weights[_HEAD])
    return result


def has_head_size(config: Config) -> bool:
    """True where the format of the architecture names the size of a head by itself."""
    is_neox = config.mlp_class_name == "GptNeoxMLP" and not config.name.lower().startswith("phi")
    return not is_neox


def describe_model(config: Config, base_folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """`config.json` of a model.

    What the base's own file says beyond sizes is kept, where there is one of the same kind.

    Raises:
        Skip2BenchError: Hugging Face has no such architecture.
    """
    known = read_settings(base_folder / "config.json")
    described = _describe(config, known)
    if described.get("model_type") == known.get("model_type"):
        described = known | described
    described.pop("dtype", None)  # the base's, which transformers would take before ours
    return described | {
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _describe(config: Config, known: dict[str, Any]) -> dict[str, Any]:
    """Kind and sizes of a model."""
    kind, architecture, own = _kind(config)
    if kind is None:
        if not known:
            raise Skip2BenchError(
                f"no Hugging Face architecture is known for {config.name}, and its folder has no "
                "config.json; put the base's there, or export --to litgpt"
            )
        kind, architecture, own = known["model_type"], known["architectures"][0], {}
    eps = next(
        (key for key in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon") if key in known),
        "rms_norm_eps" if config.norm_class_name == "RMSNorm" else "layer_norm_eps",
    )
    sizes = {
        "model_type": kind,
        "architectures": [architecture],
        "vocab_size": config.padded_vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "max_position_embeddings": config.block_size,
        "rope_theta": float(config.rope_base),
        eps: config.norm_eps,
    }
    if not has_head_size(config):
        del sizes["head_dim"], sizes["num_key_value_heads"]
    return sizes | own | _describe_rope(config)


def _describe_rope(config: Config) -> dict[str, Any]:
    """How positions are stretched, if they are."""
    own = config.rope_adjustments
    if own is None or config.name.startswith("Gemma-3-"):
        if config.rope_condense_ratio != 1:
            return {"rope_scaling": {"rope_type": "linear", "factor": config.rope_condense_ratio}}
        return {}
    if "low_freq_factor" in own:
        return {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": own["factor"],
                "low_freq_factor": own["low_freq_factor"],
                "high_freq_factor": own["high_freq_factor"],
                "original_max_position_embeddings": own["original_max_seq_len"],
            }
        }
    return {"rope_scaling": {"rope_type": "linear", "factor": own["factor"]}}


def _kind(config: Config) -> tuple[str | None, str, dict[str, Any]]:
    """Model type, class, and settings of its own; None for what is not known."""
    name = config.name.lower()
    no_bias = {"attention_bias": False, "mlp_bias": False}
    if config.mlp_class_name == "GemmaMLP":
        return _gemma_kind(config)
    if config.norm_class_name == "LayerNorm":
        return _layer_norm_kind(config)
    if config.mlp_class_name == "LLaMAMoE":
        experts = {
            "num_experts_per_tok": config.n_expert_per_token,
            "num_local_experts": config.n_expert,
        }
        is_mixtral = not config.norm_qk and not config.n_expert_groups
        return ("mixtral", "MixtralForCausalLM", experts) if is_mixtral else (None, "", {})
    if name.startswith("olmo-2-"):
        return "olmo2", "Olmo2ForCausalLM", {"attention_bias": False}
    if name.startswith(("phi-3", "phi-4")):
        own = {"pad_token_id": None, "rope_scaling": None}
        if config.rotary_percentage != 1.0:
            own["partial_rotary_factor"] = config.rotary_percentage
        window = config.sliding_window_size
        return "phi3", "Phi3ForCausalLM", own | ({"sliding_window": window} if window else {})
    if config.norm_qk:
        return "qwen3", "Qwen3ForCausalLM", {"attention_bias": False}
    if config.attn_bias and not config.bias:
        return "qwen2", "Qwen2ForCausalLM", {"use_sliding_window": False}
    if config.sliding_window_size:
        return "mistral", "MistralForCausalLM", {"sliding_window": config.sliding_window_size}
    return "llama", "LlamaForCausalLM", no_bias


def _gemma_kind(config: Config) -> tuple[str | None, str, dict[str, Any]]:
    own: dict[str, Any] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
    }
    if not config.name.startswith(("Gemma-2-", "Gemma-3-")):
        return "gemma", "GemmaForCausalLM", own
    own |= {
        "query_pre_attn_scalar": config.attention_scores_scalar or config.head_size,
        "sliding_window": config.sliding_window_size,
        "attn_logit_softcapping": config.attention_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
    }
    if config.sliding_window_indices:
        names = {0: "full_attention", 1: "sliding_attention"}
        own["layer_types"] = [names[i] for i in config.sliding_window_indices]
    if config.name.startswith("Gemma-2-"):
        return "gemma2", "Gemma2ForCausalLM", own
    scaling = None
    if config.rope_adjustments:
        scaling = {"rope_type": "linear", "factor": config.rope_adjustments["factor"]}
    own |= {
        "rope_scaling": scaling,
        "rope_local_base_freq": float(config.rope_local_base_freq or config.rope_base),
    }
    return "gemma3_text", "Gemma3ForCausalLM", own


def _layer_norm_kind(config: Config) -> tuple[str | None, str, dict[str, Any]]:
    name = config.name.lower()
    if name.startswith("phi"):
        own = {"partial_rotary_factor": config.rotary_percentage, "hidden_act": "gelu_new"}
        return "phi", "PhiForCausalLM", own
    if name.startswith("olmo"):
        return "olmo", "OlmoForCausalLM", {"attention_bias": False, "clip_qkv": None}
    if config.mlp_class_name == "GptNeoxMLP" and "falcon" not in name and config.bias:
        return (
            "gpt_neox",
            "GPTNeoXForCausalLM",
            {
                "rotary_pct": config.rotary_percentage,
                "rotary_emb_base": config.rope_base,
                "use_parallel_residual": config.parallel_residual,
                "hidden_act": "gelu" if config.gelu_approximate == "none" else "gelu_new",
            },
        )
    return None, "", {}


def write_hugging_face(
    folder: Path,
    config: Config,
    weights: dict[str, Tensor],
    base_folder: Path,
    dtype: torch.dtype,
    chat: Chat,
) -> None:
    """Write a model's folder.

    Args:
        folder: Empty.
        config: LitGPT's.
        weights: LitGPT's state dict, in `dtype`.
        base_folder: With the tokenizer.
        dtype: Of the weights.
        chat: What stands around messages.
    """
    described = describe_model(config, base_folder, dtype)
    copy_tokenizer(base_folder, folder)
    described |= _special_tokens(folder)
    write_json(folder / "config.json", described)
    _write_chat_template(base_folder, folder, chat)
    converted = convert_weights(config, weights)
    save_torch_state_dict(_own_memory(converted), folder, metadata={"format": "pt"})
    let_others_read(folder)


def _own_memory(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights none of which shares memory; safetensors would leave all but one of them out."""
    seen: set[int] = set()
    result = {}
    for name, value in weights.items():
        storage = value.untyped_storage()
        is_shared = storage.data_ptr() in seen or storage.nbytes() != value.nbytes
        if not value.is_contiguous() or is_shared:
            result[name] = value.clone(memory_format=torch.contiguous_format)
        else:
            result[name] = value
        seen.add(storage.data_ptr())
    return result


def _special_tokens(folder: Path) -> dict[str, Any]:
    """Ids that generation begins and ends with, as the tokenizer has them."""
    own = read_settings(folder / "generation_config.json")
    ids: dict[str, Any] = {key: own[key] for key in ("bos_token_id", "eos_token_id") if key in own}
    if ids:
        return ids
    tokenizer = load_tokenizer(folder)
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}


def _write_chat_template(base_folder: Path, folder: Path, chat: Chat) -> None:
    """Keep the base's chat template, or put the one of the prompt style in its place."""
    own = base_folder / CHAT_TEMPLATE_FILE
    if chat.is_base_template:
        if own.is_file():
            shutil.copy(own, folder)
        return
    settings = read_settings(folder / TOKENIZER_FILE)
    settings.pop("chat_template", None)  # of another style than the one that was trained with
    if chat.template is not None:
        bos = "{{ bos_token }}" if chat.adds_bos else ""
        settings["chat_template"] = bos + chat.template
    write_json(folder / TOKENIZER_FILE, settings)
