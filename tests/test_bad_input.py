"""Careless and hostile input: one line that says what to do, and nothing written.

The table is `data/bad_input.jsonl`, a case a line: what is given and the complete line that answers
it. `{tiny}`, `{data}` and `{in}` stand for the small checkpoint, its data and the folder of the
case's file, `{torch}` for torch's version, `{train_keys}` for the fields of `train`, and `{9*5000}`
for five thousand nines.
"""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import skip2bench.cli.app as cli
from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError, error_line, printable
from skip2bench.models.base import load_config
from skip2bench.models.tokenizer import load_tokenizer
from skip2bench.models.weights import check_weights

COMMON = {
    "train": ["--checkpoint-dir={tiny}", "--data={data}", "--lr-warmup-steps=1"],
    "compare": ["--checkpoint-dir={tiny}", "--data={data}", "--lr-warmup-steps=1"],
    "tune": ["--checkpoint-dir={tiny}", "--data={data}", "--lr-warmup-steps=1"],
    "bench": ["--model={tiny}", "--seq-length=8"],
}


@pytest.fixture
def refuse(monkeypatch, capsys, tmp_path, tiny_checkpoint, tiny_data):
    """Run a command in an empty folder; it must write nothing. Returns its one line."""
    places = {"{tiny}": tiny_checkpoint, "{data}": tiny_data, "{in}": tmp_path / "in"}
    work = tmp_path / "work"
    work.mkdir()
    places["{in}"].mkdir()

    def run(*arguments: str) -> str:
        given = {argument.partition("=")[0] for argument in arguments}
        common = [a for a in COMMON.get(arguments[0], []) if a.partition("=")[0] not in given]
        typed = [arguments[0], *common, *arguments[1:]]
        for mark, place in places.items():
            typed = [argument.replace(mark, str(place)) for argument in typed]
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.chdir(work)
        monkeypatch.setattr(sys, "argv", ["skip2bench", *typed])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        assert (exit_.value.code, out) == (1, "")
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        assert err.startswith("error: ")
        assert err.endswith("\n")
        for mark, place in places.items():
            err = err.replace(str(place), mark)
        return err[len("error: ") : -1]

    run.folder = places["{in}"]
    return run


@pytest.fixture
def write(refuse):
    def run(name: str, content: str | bytes) -> None:
        raw = content if isinstance(content, bytes) else content.encode()
        (refuse.folder / name).write_bytes(raw)

    return run


def _expand(text: str) -> str:
    text = text.replace("{torch}", torch.__version__)
    text = text.replace("{train_keys}", ", ".join(sorted(it.name for it in fields(TrainConfig))))
    return re.sub(r"\{(.{1,5}?)\*(\d+)\}", lambda run: run[1] * int(run[2]), text)


def _read_cases() -> list[dict]:
    table = Path(__file__).parent / "data" / "bad_input.jsonl"
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


CASES = _read_cases()


def test_the_table_is_large():
    assert len(CASES) > 250
    assert len({json.dumps(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{case['kind']}{number}" for number, case in enumerate(CASES, start=1)]
)
def test_bad_input(refuse, write, case):
    name = case.get("name", "c.yaml")
    if "content" in case:
        write(name, _expand(case["content"]))
    elif "hex" in case:
        write(name, bytes.fromhex(case["hex"]))
    arguments = {
        "yaml": ["train", "--config={in}/c.yaml"],
        "matrix": ["compare", "--config={in}/c.yaml"],
        "data": ["train", f"--data={{in}}/{name}"],
    }.get(case["kind"], case.get("arguments"))
    assert refuse(*map(_expand, arguments)) == _expand(case["error"])


def test_data_without_a_supervised_token(refuse, write):
    write("d.json", json.dumps([{"instruction": "a " * 600, "output": "b"}] * 40))
    assert refuse("train", "--data={in}/d.json", "--mask-prompt") == (
        "data '{in}/d.json' has no training sample with a supervised token within 96 tokens; "
        "give more records or a larger --max-seq-length"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(refuse):
    text = f"device 'cuda' is not available to torch {torch.__version__}; use --device auto"
    assert refuse("train", "--device=cuda") == text


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission(refuse, write):
    write("d.json", "[]")
    (refuse.folder / "d.json").chmod(0)
    assert refuse("train", "--data={in}/d.json") == (
        "data file '{in}/d.json' cannot be read (Permission denied); check its permissions"
    )


def test_data_that_needs_a_token_or_a_network(refuse, monkeypatch):
    import litgpt.data

    def stop(self):
        Path("data/alpaca").mkdir(parents=True)
        self.download_dir = Path("data/alpaca")
        raise ConnectionError

    monkeypatch.setattr(litgpt.data.Alpaca, "prepare_data", stop)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert refuse("train", "--data=alpaca") == (
        "data 'alpaca' could not be downloaded (ConnectionError); connect this machine to the "
        "network, or use --data pydoc or a JSON file"
    )
    text = refuse("train", "--data=lima")
    assert text.startswith("data 'lima' cannot be used (LIMA requires authentication, ")
    assert text.endswith("); choose another, such as pydoc or a JSON file")


class _Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _write_payload(path: Path, mark: Path) -> None:
    """A file as torch.save writes it, with code in its pickle."""
    torch.save({"x": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            is_pickle = name.endswith("data.pkl")
            archive.writestr(name, pickle.dumps(_Payload(mark)) if is_pickle else content)


def _change(path: Path, change) -> None:
    weights = torch.load(path, weights_only=True)
    torch.save(change(weights) or weights, path)


def _fill(name: str, value: float):
    return lambda w: w[name].view(-1).__setitem__(3, value)


FC = "transformer.h.0.mlp.fc_1.weight"
BEHIND = "download the checkpoint again"
MISFIT = "the weights in '{in}/m/lit_model.pth' are not those of the model_config.yaml beside them"
WEIGHTS = {
    "empty": (lambda p: p.write_bytes(b""), "(it is empty)"),
    "text": (lambda p: p.write_text("x"), "(it is no file that torch.save wrote, or an old one)"),
    "cut": (
        lambda p: p.write_bytes(p.read_bytes()[:3000]),
        "(it is no file that torch.save wrote, or an old one)",
    ),
    "payload": (
        lambda p: _write_payload(p, p.parent / "ran"),
        "(it holds something else than tensors, such as code, which is not run)",
    ),
    "list": (lambda p: torch.save([1], p), "holds no tensors by name"),
    "numbers": (lambda p: torch.save({"a": 1}, p), "holds 'a', which is no tensor"),
}
VALUES = {
    "missing": (lambda w: w.pop(FC), MISFIT + f" (it lacks {FC})"),
    "extra": (lambda w: w.update(more=torch.ones(1)), MISFIT + " (it has also more)"),
    "shape": (
        lambda w: w.update({FC: torch.zeros(2, 2)}),
        MISFIT + f" ({FC} has shape (2, 2), the model's (24, 16))",
    ),
    "integer": (
        lambda w: w.update({FC: torch.zeros(24, 16, dtype=torch.int64)}),
        FC + " in '{in}/m/lit_model.pth' is int64, none of float32, bfloat16, float16, float64",
    ),
    "nan": (
        _fill(FC, float("nan")),
        FC + " in '{in}/m/lit_model.pth' holds values that are not finite",
    ),
    "infinite": (
        _fill("lm_head.weight", float("-inf")),
        "lm_head.weight in '{in}/m/lit_model.pth' holds values that are not finite",
    ),
}


@pytest.fixture
def model(refuse, tiny_checkpoint):
    """A copy of the small checkpoint to damage."""
    return Path(shutil.copytree(tiny_checkpoint, refuse.folder / "m"))


@pytest.mark.parametrize("command", ["train", "bench", "compare"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_broken_weights(refuse, model, name, command):
    damage, reason = WEIGHTS[name]
    damage(model / "lit_model.pth")
    option = "model" if command == "bench" else "checkpoint-dir"
    middle = "cannot be read " if reason.startswith("(") else ""
    expected = "'{in}/m/lit_model.pth' " + middle + f"{reason}; {BEHIND}"
    assert refuse(command, f"--{option}={{in}}/m") == expected
    assert not (model / "ran").exists()


@pytest.mark.parametrize("name", VALUES)
def test_wrong_weights(refuse, model, name):
    change, text = VALUES[name]
    _change(model / "lit_model.pth", lambda weights: (change(weights), weights)[1])
    assert refuse("train", "--checkpoint-dir={in}/m") == f"{text}; {BEHIND}"
    assert refuse("bench", "--model={in}/m") == f"{text}; {BEHIND}"


def test_weights_below_the_key_model_are_taken(tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "m"))
    _change(folder / "lit_model.pth", lambda weights: {"model": weights})
    check_weights(folder / "lit_model.pth", load_config(folder))


CONFIGS = {
    "": "(it holds no mapping)",
    "a: [": "(while parsing a flow node expected the node content, but found '<stream end>' in "
    '"__PATH_", line 1, column 5)',
    "n_layers: 3": "(made by another LitGPT: n_layers is 3, which has no place here)",
    "[1]": "(it holds no mapping)",
    "n_layer: four": "(n_layer is 'four')",
    "n_layer: -1": "(n_layer is -1)",
    "n_layer: 100000000000": "(n_layer is 100000000000)",
    "n_embd: 15\nn_head: 4": "(its sizes do not fit each other)",
}


@pytest.mark.parametrize("content", CONFIGS)
def test_a_broken_model_configuration(refuse, model, content):
    (model / "model_config.yaml").write_text(content)
    text = refuse("train", "--checkpoint-dir={in}/m")
    path = "{in}/m/model_config.yaml"
    reason = CONFIGS[content].replace("__PATH__", path).replace("__PATH_", path)
    assert text == f"'{path}' is no LitGPT model configuration {reason}; download it again"


def test_another_models_configuration(refuse, model):
    path = model / "model_config.yaml"
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(settings | {"n_embd": 32}))
    text = refuse("train", "--checkpoint-dir={in}/m")
    assert text.startswith(MISFIT + " (lm_head.weight has shape (320, 16), the model's (320, 32))")
    path.write_text(yaml.safe_dump(settings | {"mlp_class_name": "Nothing"}))
    assert refuse("train", "--checkpoint-dir={in}/m") == (
        "'{in}/m/model_config.yaml' describes no model that LitGPT can build (module "
        f"'litgpt.model' has no attribute 'Nothing'); {BEHIND}"
    )


TOKENIZERS = {
    "tokenizer.json": (
        "{",
        "(JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1))",
    ),
    "tokenizer_config.json": (
        "[",
        "(JSONDecodeError: Expecting value: line 1 column 2 (char 1))",
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_broken_tokenizer(refuse, model, name):
    content, reason = TOKENIZERS[name]
    (model / name).write_text(content)
    assert refuse("train", "--checkpoint-dir={in}/m") == (
        f"the tokenizer in '{{in}}/m' cannot be loaded {reason}; bring tokenizer.json and "
        "tokenizer_config.json of the model it was made from"
    )


def test_a_tokenizer_of_another_model(refuse, model):
    path = model / "model_config.yaml"
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(settings | {"vocab_size": 90, "padded_vocab_size": 90}))
    names = ("lm_head.weight", "transformer.wte.weight")
    _change(model / "lit_model.pth", lambda w: w.update({n: w[n][:90].clone() for n in names}))
    highest = load_tokenizer(model).vocab_size - 1
    text = refuse("train", "--checkpoint-dir={in}/m")
    assert text.startswith("the tokenizer in '{in}/m' gives token ")
    assert text.endswith(
        f", and the model has 90 tokens: it is another model's; {BEHIND}",
    )
    assert 90 <= int(text.split("token ")[1].split(",")[0]) <= highest


def test_a_tokenizer_without_an_end(refuse, model):
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "X"}')
    assert refuse("train", "--checkpoint-dir={in}/m") == (
        "the tokenizer of the checkpoint has no end of text; add its eos_token to "
        "tokenizer_config.json, or download the checkpoint again"
    )


def test_a_hugging_face_folder(refuse, model):
    (model / "lit_model.pth").rename(model / "pytorch_model.bin")
    assert refuse("train", "--checkpoint-dir={in}/m") == (
        "'{in}/m' is a Hugging Face checkpoint; convert it: litgpt convert_to_litgpt {in}/m, or "
        "add --convert"
    )


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tiny_checkpoint, tiny_data):
    """The `final` folders of a LoRA run and a run of `last`."""
    from skip2bench.config.train import TrainConfig
    from skip2bench.train.run import run_training

    root = tmp_path_factory.mktemp("adapters")
    for method in ("lora", "last"):
        config = TrainConfig(
            method=method,
            checkpoint_dir=tiny_checkpoint,
            data=str(tiny_data),
            max_steps=1,
            device="cpu",
            out_dir=root / method,
        )
        run_training(config, [])
    return root


def _yaml(path: Path, **changes) -> None:
    settings = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v != "absent"}))


def _tensors(path: Path, **changes) -> None:
    save_file(load_file(path) | changes, path)


QUERY = "transformer.h.0.attn.qkv.lora_A"
LORA, LAST = "lit_model.pth.lora", "adapter.safetensors"
AGAIN = "; train it again"
BROKEN = "the adapter in '{in}/a' cannot be loaded "
MERGES = [
    (
        "lora",
        lambda f: _write_payload(f / LORA, f / "ran"),
        f"'{{in}}/a/{LORA}' cannot be read (it holds something else than tensors, such as code, "
        f"which is not run){AGAIN}",
    ),
    (
        "lora",
        lambda f: (f / LORA).write_bytes(b""),
        f"'{{in}}/a/{LORA}' cannot be read (it is empty){AGAIN}",
    ),
    (
        "lora",
        lambda f: _change(f / LORA, lambda w: w["model"].pop(QUERY) is None),
        BROKEN + f"({QUERY} is not in both {LORA} and the model){AGAIN}",
    ),
    (
        "lora",
        lambda f: _change(f / LORA, lambda w: w["model"].update({QUERY: torch.zeros(1)})),
        BROKEN + f"({QUERY} has shape (1,), its base's (8, 16)){AGAIN}",
    ),
    (
        "lora",
        lambda f: _change(f / LORA, lambda w: w["model"][QUERY].fill_(float("nan")) is None),
        f"{QUERY} in '{{in}}/a/{LORA}' holds values that are not finite{AGAIN}",
    ),
    (
        "lora",
        lambda f: (f / "hyperparameters.yaml").unlink(),
        "adapter's file '{in}/a/hyperparameters.yaml' does not exist; check the path",
    ),
    (
        "lora",
        lambda f: (f / "hyperparameters.yaml").write_text("a"),
        BROKEN + f"(hyperparameters.yaml names no checkpoint_dir){AGAIN}",
    ),
    (
        "lora",
        lambda f: _yaml(f / "hyperparameters.yaml", checkpoint_dir="none"),
        "the adapter in '{in}/a' needs its base model, which is no longer in 'none'; say where it "
        "is with --checkpoint-dir",
    ),
    (
        "last",
        lambda f: (f / LAST).write_bytes(b"x"),
        BROKEN + f"(Error while deserializing header: header too small){AGAIN}",
    ),
    (
        "last",
        lambda f: _tensors(f / LAST, other=torch.zeros(1)),
        BROKEN + f"(its base has no other){AGAIN}",
    ),
    (
        "last",
        lambda f: _tensors(f / LAST, **{"lm_head.weight": torch.full((320, 16), torch.inf)}),
        f"lm_head.weight in '{{in}}/a/{LAST}' holds values that are not finite{AGAIN}",
    ),
    (
        "last",
        lambda f: (f / "adapter_config.yaml").write_text("[1]"),
        BROKEN + f"(adapter_config.yaml names no method){AGAIN}",
    ),
    (
        "last",
        lambda f: _yaml(f / "adapter_config.yaml", checkpoint_sha256="absent"),
        BROKEN + f"(adapter_config.yaml lacks checkpoint_sha256){AGAIN}",
    ),
    (
        "last",
        lambda f: _yaml(f / "adapter_config.yaml", checkpoint_dir=3),
        BROKEN + f"(adapter_config.yaml names no checkpoint_dir){AGAIN}",
    ),
]


@pytest.mark.parametrize(("method", "damage", "text"), MERGES, ids=range(len(MERGES)))
def test_damaged_adapters(refuse, adapters, method, damage, text):
    folder = Path(shutil.copytree(adapters / method / "final", refuse.folder / "a"))
    damage(folder)
    assert refuse("merge", "{in}/a") == text
    assert not (folder / "ran").exists()


USAGE = [
    ("train", "--no-such-flag"),
    ("train", "--epochs", "three"),
    ("train", "--epochs", "１"),
    ("report", "extra"),
    ("tarin",),
    ("merge",),
    ("cache", "list"),
]


@pytest.mark.parametrize("arguments", USAGE)
def test_wrong_usage(monkeypatch, capsys, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["skip2bench", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert err.startswith("Usage: skip2bench")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


ODD = {
    "bom.json": lambda text: "\ufeff" + text,
    "windows.jsonl": lambda text: "\r\n".join(map(json.dumps, json.loads(text))),
    "scripts.json": lambda text: text.replace("Add 3", "שלום 👩\u200d👩\u200d👧 \u202eabc"),
    "escaped.json": lambda text: text.replace("Add 3", "\\u0000\\u001b[31m"),
    "nan.json": lambda text: text.replace('"input"', '"score": NaN, "input"'),
    "UPPER.JSON": lambda text: text,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_data_works(tiny_checkpoint, tiny_data, tmp_path, name):
    from skip2bench.config.train import TrainConfig
    from skip2bench.data.load import load_data

    path = tmp_path / name
    path.write_text(ODD[name](tiny_data.read_text()), encoding="utf-8", newline="")
    data = load_data(TrainConfig(data=str(path)), load_tokenizer(tiny_checkpoint), 96)
    assert (len(data.train), len(data.val), data.dropped) == (38, 2, 0)


def _warnings(train, capsys, tmp_path, records, **changes):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(records))
    train(data=str(path), method="lora", max_steps=2, **changes)
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("warning: ")]


def test_what_runs_and_is_perhaps_not_meant_is_said(train, capsys, tmp_path):
    records = [{"instruction": f"Do {i}", "input": "", "output": f"o{i}"} for i in range(40)]
    long = [record | {"output": "word " * 200} for record in records[:3]]
    empty = [record | {"output": " "} for record in records[:4]]
    # the validation side is drawn by number: of 40 records, 2
    assert _warnings(train, capsys, tmp_path, [*long, *empty, *records[7:]], name="a") == [
        "warning: 3 samples cut to 96 tokens, without the end of the output",
        "warning: 4 records with an empty output, which teaches to say nothing",
    ]
    changes = {"micro_batch_size": 9, "lr_warmup_steps": 4}
    assert _warnings(train, capsys, tmp_path, [records[0]] * 40, name="b", **changes) == [
        "warning: 2 of 2 validation samples are training samples too: the validation loss will "
        "look too good; remove duplicates from the data",
        "warning: micro_batch_size 9 is larger than global_batch_size 8: a forward pass has at "
        "most 8",
        "warning: the run ends inside the warm-up: 2 of 4 steps, the learning rate reaches 50% of "
        "0.01; lower --lr-warmup-steps",
    ]


def test_flags_that_change_nothing_are_named():
    from skip2bench.config.load import load_train_config

    flags = {"method": "lora", "blocks": "0", "target": "logits", "skip_r": 3}
    assert load_train_config(flags)[1] == [
        "skip_r (lora takes lora_r)",
        "blocks (only skip and skip2 take it)",
        "target (only skip and skip2 take it)",
    ]


def test_every_key_of_litgpts_finetuning_is_known_or_answered(tmp_path):
    """A key of LitGPT's is taken, named as without effect, or refused with a remedy."""
    import inspect
    from dataclasses import fields

    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.finetune import full, lora

    from skip2bench.config.load import load_train_config

    keys = [f"train.{item.name}" for item in fields(TrainArgs)]
    keys += [f"eval.{item.name}" for item in fields(EvalArgs)]
    for setup in (lora.setup, full.setup):
        keys += [name for name in inspect.signature(setup).parameters if name != "resume"]
    path = tmp_path / "c.yaml"
    for key in keys:
        block, _, name = key.rpartition(".")
        path.write_text(f"{block}:\n  {name}: 1\n" if block else f"{name}: 1\n")
        with suppress(Skip2BenchError):
            load_train_config({}, path)
            continue
        with pytest.raises(Skip2BenchError) as raised:
            load_train_config({}, path)
        assert "unknown key" not in str(raised.value), key


def _end(monkeypatch, capsys, error: BaseException) -> tuple[int, str]:
    def stop(*_):
        raise error

    monkeypatch.setattr("skip2bench.config.load.load_train_config", stop)
    monkeypatch.setattr(sys, "argv", ["skip2bench", "train"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    out, err = capsys.readouterr()
    assert out == ""
    return exit_.value.code, err


def test_memory_runs_out_before_there_is_a_run(monkeypatch, capsys):
    remedy = "; use a smaller model, fewer or shorter samples, or a machine with more of it\n"
    assert _end(monkeypatch, capsys, MemoryError()) == (
        1,
        f"error: out of memory (no more to allocate){remedy}",
    )
    torchs = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
    assert _end(monkeypatch, capsys, torchs) == (1, f"error: out of memory ({torchs}){remedy}")
    cudas = torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
    text = "CUDA out of memory. Tried to allocate"
    assert _end(monkeypatch, capsys, cudas) == (1, f"error: out of memory ({text}){remedy}")


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    assert _end(monkeypatch, capsys, KeyboardInterrupt()) == (130, "interrupted\n")


def test_a_bug_keeps_its_traceback(monkeypatch, capsys):
    with pytest.raises(RuntimeError, match="a bug"):
        _end(monkeypatch, capsys, RuntimeError("a bug"))


@pytest.mark.parametrize(
    "redirection", [">&-", "2>&-", ">&- 2>&-", "<&-", "| true", "2>&1 | true", ">/dev/full"]
)
def test_closed_streams_end_cleanly(tmp_path, redirection):
    command = f"{sys.executable} -m skip2bench report --results none {redirection}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if "|" in redirection else 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
def test_a_full_disk_behind_standard_output(tmp_path):
    command = f"{sys.executable} -m skip2bench report --results {{}} --lang en > /dev/full"
    results = tmp_path / "results"
    shutil.copytree(Path(__file__).parent / "data" / "results", results)
    done = subprocess.run(
        ["bash", "-c", command.format(results)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: cannot write to standard output (No space left on device); use --output or "
        "another file"
    )


def test_an_error_is_one_safe_line():
    assert error_line("a\nb\x1b[31mc\0\ud800\u202e") == "error: a b\\x1b[31mc\\x00\\ud800\\u202e"
    assert len(error_line("x" * 9999 + " end")) < 450
    long = error_line("word " * 9999 + "remedy")
    assert long.endswith("remedy")
    assert len(long) < 2050
    assert printable("日本語\n👩") == "日本語\n👩"
