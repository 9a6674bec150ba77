import json
import math
import subprocess
import sys
from functools import partialmethod

import pandas as pd
import pytest
import torch
import yaml
from litgpt.data import SFTDataset
from litgpt.lora import GPT as LoraGPT
from litgpt.lora import Config as LoraConfig
from litgpt.lora import mark_only_lora_as_trainable
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer
from litgpt.utils import chunked_cross_entropy

from skip2bench.config.methods import METHODS
from skip2bench.config.train import TrainConfig
from skip2bench.data.domain import load_domain
from skip2bench.data.load import load_data
from skip2bench.data.samples import collate, global_batches
from skip2bench.errors import Skip2BenchError
from skip2bench.models.adapters import load_skip_model
from skip2bench.models.base import load_checkpoint
from skip2bench.models.methods import build_model, resolve_method
from skip2bench.results.run_folder import METRICS_COLUMNS, STEPS_COLUMNS
from skip2bench.train.cached_objective import CachedObjective
from skip2bench.train.objective import TokenObjective
from skip2bench.train.run import run_training
from skip2bench.train.trunk_objective import TrunkObjective

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "bias"])
def test_a_run_writes_what_the_design_says(train, method):
    summary, metrics, steps, folder = train(method=method)
    assert summary["status"] == "ok"
    assert tuple(metrics.columns) == METRICS_COLUMNS
    assert tuple(steps.columns) == STEPS_COLUMNS
    assert metrics["step"].tolist() == [0, 4, 8, 10]
    assert steps["step"].tolist() == list(range(1, 11))
    assert not metrics.isna().any().any()
    assert not steps.isna().any().any()
    assert metrics["val_loss"].iloc[-1] < metrics["val_loss"].iloc[0]
    assert metrics["train_loss"].iloc[0] == pytest.approx(steps["loss"].iloc[0], rel=1e-5)
    assert metrics["train_loss"].iloc[1] == pytest.approx(steps["loss"].iloc[:4].mean())
    assert summary["final_val_loss"] == metrics["val_loss"].iloc[-1]
    assert summary["best_val_loss"] == metrics["val_loss"].min()
    parts = ("data", "cache_build", "calibration", "forward", "backward", "optimizer")
    assert summary["train_seconds"] == pytest.approx(
        sum(summary[f"{part}_seconds"] for part in parts)
    )
    is_cached = METHODS[method].is_cached
    assert (summary["cache_build_seconds"] > 0) == (summary["cache_bytes"] > 0) == is_cached
    saved = {"full": "lit_model.pth", "full+lora": "lit_model.pth"}
    if METHODS[method].has_lora:
        saved.setdefault(method, "lit_model.pth.lora")
    file = folder / "final" / saved.get(method, "adapter.safetensors")
    assert summary["adapter_bytes"] == file.stat().st_size
    assert summary["forgetting"] is None  # no text of the tiny model's domain
    written = json.loads((folder / "summary.json").read_text())
    assert written == {key: value for key, value in summary.items() if key != "folder"}
    environment = json.loads((folder / "environment.json").read_text())
    assert len(environment["data"]["sha256"]) == len(environment["checkpoint"]["sha256"]) == 64


@pytest.mark.parametrize("target", ["hidden", "logits"])
def test_skip2_follows_skip(train, target):
    """Same batches, dropout off: every training and validation loss agrees to 1e-5."""
    _, skip_metrics, skip_steps, _ = train("skip", method="skip", target=target, max_steps=20)
    _, skip2_metrics, skip2_steps, _ = train("skip2", method="skip2", target=target, max_steps=20)
    assert (skip_steps["loss"] - skip2_steps["loss"]).abs().max() < 1e-5
    assert (skip_metrics["val_loss"] - skip2_metrics["val_loss"]).abs().max() < 1e-5
    assert skip_steps["tokens"].tolist() == skip2_steps["tokens"].tolist()


@pytest.mark.parametrize("method", ["lora", "skip"])
def test_the_loss_does_not_depend_on_the_micro_batch(train, method):
    results = [
        train(f"m{size}", method=method, micro_batch_size=size)[2]["loss"] for size in (1, 3, 8)
    ]
    for other in results[1:]:
        assert (results[0] - other).abs().max() < 1e-5


def test_every_method_sees_the_same_batches(train, monkeypatch):
    seen = {}

    def record(objective, portions, batch, following=()):
        seen[method].append((list(batch), list(following)))
        return portions(objective, batch, following)

    for objective in (TokenObjective, CachedObjective, TrunkObjective):
        monkeypatch.setattr(objective, "portions", partialmethod(record, objective.portions))
    methods = [method for method in METHODS if method != "bias"]
    for method in methods:
        seen[method] = []
        train(method, method=method)
    first, *others = seen.values()
    assert len(seen) == len(methods) == 10
    assert all(other == first for other in others)


@pytest.mark.parametrize("method", ["lora", "skip", "skip2"])
def test_frozen_weights_do_not_move(train, method, monkeypatch, tiny_checkpoint):
    models = []
    monkeypatch.setattr(
        "skip2bench.train.parts.build_model",
        lambda *args: models.append(build_model(*args)) or models[0],
    )
    train(method=method)
    before = torch.load(tiny_checkpoint / "lit_model.pth", weights_only=True)
    after = {key.replace(".linear.", "."): value for key, value in models[0].state_dict().items()}
    # skip2 has let go of what its cache stands for
    kept = [
        key
        for key in before
        if method != "skip2" or not key.startswith(("transformer.h", "transformer.wte"))
    ]
    assert len(kept) >= 2
    assert all(torch.equal(before[key], after[key]) for key in kept)
    assert any("lora_B" in key and value.abs().sum() > 0 for key, value in after.items())


@pytest.mark.parametrize("method", ["lora", "skip", "skip2", "last"])
def test_forgetting_is_the_change_of_the_loss_on_the_domain_text(
    train, method, tmp_path, tiny_checkpoint
):
    text = tmp_path / "domain.txt"
    text.write_text("Held-out words of another kind. " * 60)
    summary, *_ = train(method=method, domain_text=str(text))
    base = load_checkpoint(tiny_checkpoint, CPU, torch.float32)
    model = GPT(base.config)
    model.load_state_dict(base.weights)
    domain = load_domain(str(text), tiny_checkpoint, Tokenizer(tiny_checkpoint), 96)
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(model(ids[None])[0, :-1], ids[1:])
            for ids in domain.input_ids
        ]
    assert summary["domain_loss_before"] == pytest.approx(float(sum(losses)) / len(losses), 1e-5)
    assert summary["forgetting"] == pytest.approx(
        summary["domain_loss_after"] - summary["domain_loss_before"]
    )
    assert abs(summary["forgetting"]) > 1e-4


def test_skip2_forgets_what_skip_forgets(train, tmp_path):
    text = tmp_path / "domain.txt"
    text.write_text("Held-out words of another kind. " * 60)
    skip, skip2 = (
        train(method, method=method, domain_text=str(text))[0] for method in ("skip", "skip2")
    )
    assert skip["forgetting"] == pytest.approx(skip2["forgetting"], abs=1e-5)


def test_lora_equals_a_plain_loop_over_litgpt(train, tiny_checkpoint, tiny_data):
    """The same losses as a loop written out with LitGPT's model, loss and torch's AdamW."""
    _, _, steps, folder = train(method="lora", micro_batch_size=8, max_steps=6)
    config = TrainConfig(checkpoint_dir=tiny_checkpoint, data=str(tiny_data))
    data = load_data(config, Tokenizer(tiny_checkpoint), 96)
    base = load_checkpoint(tiny_checkpoint, CPU, torch.float32)
    ours = build_model(
        resolve_method("lora", "", TrainConfig(lora_dropout=0.0), base.config), base, CPU, 1337
    )
    lora_config = LoraConfig.from_file(
        tiny_checkpoint / "model_config.yaml",
        lora_r=4,
        lora_alpha=16,
        lora_query=True,
        lora_value=True,
    )
    model = LoraGPT(lora_config)
    model.load_state_dict(
        torch.load(tiny_checkpoint / "lit_model.pth", weights_only=True), strict=False
    )
    model.load_state_dict(
        {k: v for k, v in ours.state_dict().items() if "lora_" in k}, strict=False
    )
    mark_only_lora_as_trainable(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step, ids in enumerate(
        global_batches(len(data.train), 8, 1337, 0) + global_batches(len(data.train), 8, 1337, 1)
    ):
        if step == 6:
            break
        for group in optimizer.param_groups:
            warm = min((step + 1) / 2, 1.0)
            group["lr"] = 1e-2 * (
                warm if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 4))
            )
        input_ids, labels = collate(data.train, ids)
        loss = chunked_cross_entropy(model(input_ids)[..., :-1, :], labels[..., 1:], chunk_size=0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert steps["loss"].tolist() == pytest.approx(losses, abs=1e-5)
    saved = torch.load(folder / "final" / "lit_model.pth.lora", weights_only=True)["model"]
    for key, value in model.state_dict().items():
        if "lora_" in key:
            torch.testing.assert_close(saved[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("target", ["hidden", "logits"])
def test_a_saved_skip_adapter_gives_the_same_logits(train, target, monkeypatch, tiny_checkpoint):
    models = []
    monkeypatch.setattr(
        "skip2bench.train.parts.build_model",
        lambda *args: models.append(build_model(*args)) or models[0],
    )
    _, _, _, folder = train(method="skip", target=target)
    tokens = torch.randint(320, (2, 11))
    loaded = load_skip_model(folder / "final")
    assert torch.equal(loaded(tokens), models[0].eval()(tokens))


def test_a_config_repeats_the_run(train, tmp_path):
    from skip2bench.config.load import load_train_config

    _, _, steps, folder = train("first", method="skip2", lora_dropout=0.2)
    config, ignored = load_train_config({"out_dir": tmp_path / "again"}, folder / "config.yaml")
    assert ignored == []
    run_training(config, ["train"])
    again = pd.read_csv(tmp_path / "again" / "logs" / "version_0" / "steps.csv")
    assert again["loss"].tolist() == steps["loss"].tolist()


def test_a_folder_with_a_run_is_not_overwritten_without_force(train):
    train(method="skip2", max_steps=2)
    with pytest.raises(Skip2BenchError, match="holds a run already"):
        train(method="skip2", max_steps=2)
    summary, _, _, folder = train(method="skip2", max_steps=3, force=True)
    assert summary["log_folder"] == "logs/version_1"
    assert len(pd.read_csv(folder / "logs" / "version_0" / "steps.csv")) == 2


def test_a_loss_that_is_not_finite_stops_the_run(train, tmp_path):
    with pytest.raises(
        Skip2BenchError, match=r"the loss is (nan|inf) at step \d+; lower --learning-rate"
    ):
        train(method="skip2", learning_rate=1e30)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "lower --learning-rate" in summary["error"]
    assert len(pd.read_csv(tmp_path / "run" / "logs" / "version_0" / "steps.csv")) >= 1


def test_a_validation_loss_that_is_not_finite_stops_the_run(train, tmp_path):
    with pytest.raises(Skip2BenchError, match=r"the loss is nan at step 1; lower --learning-rate"):
        train(method="skip2", max_steps=1, learning_rate=1e30, lr_warmup_steps=0)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_force_leaves_nothing_of_the_old_adapter(train):
    train(method="skip2", max_steps=1)
    _, _, _, folder = train(method="lora", max_steps=1, force=True)
    names = {path.name for path in (folder / "final").iterdir()}
    assert "lit_model.pth.lora" in names
    assert "adapter.safetensors" not in names


def test_a_run_shorter_than_its_warmup_says_so(train, capsys):
    _, _, steps, _ = train(method="skip2", max_steps=4, lr_warmup_steps=100)
    assert steps["learning_rate"].tolist() == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4])
    assert "the run ends inside the warm-up: 4 of 100 steps" in capsys.readouterr().err


def test_warm_up_takes_a_tenth_of_the_run(train):
    _, _, steps, _ = train(method="skip2", max_steps=20, epochs=20, lr_warmup_steps=None)
    assert steps["learning_rate"].argmax() == 1
    assert steps["learning_rate"][0] == pytest.approx(steps["learning_rate"][1] / 2)


def test_only_samples_that_will_be_used_are_cached(train):
    two_steps, _, _, _ = train("short", method="skip2", max_steps=2)
    all_steps, _, _, _ = train("long", method="skip2", max_steps=5)
    # and the 16 samples that features are scaled by
    assert two_steps["cache_samples"] < all_steps["cache_samples"] == 38
    assert 16 <= two_steps["cache_samples"] <= 32


def test_bytes_saved_for_backward_are_those_of_the_head_alone(train):
    lora, _, _, _ = train("lora", method="lora", micro_batch_size=8)
    skip, _, _, _ = train("skip", method="skip", micro_batch_size=8)
    assert skip["saved_for_backward_bytes"] < 0.5 * lora["saved_for_backward_bytes"]


def test_tensorboard_logs_as_well(train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, metrics, _, folder = train(method="skip2", logger="tensorboard")
    events = EventAccumulator(str(folder / "logs" / "version_0"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("val_loss")]
    assert [step for step, _ in logged] == metrics["step"].tolist()
    assert [value for _, value in logged] == pytest.approx(metrics["val_loss"].tolist(), rel=1e-6)


def test_bfloat16_runs(train):
    for method in ("lora", "skip2"):
        for precision in ("bf16-true", "bf16-mixed"):
            summary, metrics, _, _ = train(
                f"{method}-{precision}", method=method, precision=precision
            )
            assert metrics["val_loss"].iloc[-1] < metrics["val_loss"].iloc[0]
            assert summary["precision"] == precision


def test_the_litgpt_command_merges_and_generates_from_a_lora_run(train):
    _, _, _, folder = train(method="lora")
    final = folder / "final"
    saved = torch.load(final / "lit_model.pth.lora", weights_only=True)["model"]
    assert saved["transformer.h.0.attn.qkv.lora_B"].abs().sum() > 0

    def litgpt(*arguments: str) -> str:
        command = [sys.executable, "-m", "litgpt", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    litgpt("merge_lora", str(final))
    merged = torch.load(final / "lit_model.pth", weights_only=True)
    assert "transformer.h.0.attn.qkv.weight" in merged
    text = litgpt("generate", str(final), "--prompt", "Add 1 and 2.", "--max_new_tokens", "4")
    assert "Add 1 and 2." in text
    config = yaml.safe_load((final / "hyperparameters.yaml").read_text())
    assert config["lora_r"] == 4


def test_labels_and_prompts_are_those_of_litgpt(tiny_checkpoint, tiny_data):
    tokenizer = Tokenizer(tiny_checkpoint)
    data = load_data(TrainConfig(data=str(tiny_data), mask_prompt=True), tokenizer, 96)
    records = json.loads(tiny_data.read_text())
    expected = SFTDataset(records, tokenizer, "alpaca", max_seq_length=96, mask_prompt=True)
    wanted = {tuple(item["input_ids"].tolist()): item["labels"].tolist() for item in expected}
    assert len(data.train) + len(data.val) == 40
    for side in (data.train, data.val):
        for ids, labels in zip(side.input_ids, side.labels, strict=True):
            assert wanted[tuple(ids.tolist())] == labels.tolist()
