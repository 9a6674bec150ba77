import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from tiny import as_written

from skip2bench.compare.peers import litgpt as peer_litgpt
from skip2bench.compare.peers import peft as peer_peft
from skip2bench.compare.peers.dora import count_extra_flops, count_magnitudes
from skip2bench.compare.peers.run import (
    OF_LAST_ADAPTER,
    OTHER_STEPS,
    _multiply_rows,
    check_peers,
    run_peer,
)
from skip2bench.config.peers import PEERS, PeerName
from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.models.base import load_checkpoint
from skip2bench.models.methods import build_model
from skip2bench.results.answers import read_answers
from skip2bench.results.reading import read_run
from skip2bench.train.plan import plan_training

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny_checkpoint, tiny_data, tmp_path):
    return TrainConfig(
        method="lora",
        checkpoint_dir=tiny_checkpoint,
        data=str(tiny_data),
        out_dir=tmp_path / "run",
        epochs=3,
        global_batch_size=8,
        micro_batch_size=4,
        learning_rate=3e-2,
        lr_warmup_steps=2,
        device="cpu",
    )


@pytest.mark.parametrize(
    ("peer", "magnitudes"),
    [("litgpt", 0), ("peft", 0), ("peft-dora", 4 * (16 + 16)), ("peft-rslora", 0)],
)
def test_a_peer_trains_and_leaves_what_is_compared(peer, magnitudes, config):
    if PEERS[peer].program == "peft":
        pytest.importorskip("peft", reason="the extra 'peers' is not installed")
    config = replace(config, score="f1", score_max_new_tokens=5)
    summary = as_written(run_peer(peer, config, ["train"]))
    assert summary["status"] == "ok"
    assert summary["peer"] == peer
    run = read_run(config.out_dir)
    answers = read_answers(run)
    assert len(answers) == summary["score_questions"] == 2
    assert 0 <= summary["initial_next_token_accuracy"] <= summary["final_next_token_accuracy"]
    assert summary["steps"] == 3 * 5  # 38 samples in batches of 8
    assert summary["trainable_parameters"] == 4 * 4 * (2 * 16 + 2 * 16) + magnitudes
    # measured here, from the adapter that the peer wrote
    assert summary["final_val_loss"] < summary["initial_val_loss"] - 0.1
    assert summary["train_seconds"] > 0
    assert summary["adapter_bytes"] > 0
    assert OF_LAST_ADAPTER in summary["differences"]
    assert read_run(config.out_dir).summary.status == "ok"
    left = {path.name for path in (config.out_dir / peer).iterdir()}
    assert not left & {"base", "records"}  # no copies of weights and data
    if peer == "litgpt":
        # 15 steps of 16 samples are 3 epochs of its 40 micro-batches, less what fills no batch
        plan = plan_training(config)
        assert abs(summary["tokens"] - 3 * sum(plan.data.train.lengths)) < 500
    else:
        assert summary["tokens"] == 3 * sum(plan_training(config).data.train.lengths)


@pytest.mark.parametrize(("peer", "steps"), [("litgpt", 6), ("peft", 7)])
def test_a_peer_says_how_many_steps_it_made(peer, steps, config):
    """An epoch of 33 samples ends here in a batch of one, 9 steps in 3 epochs."""
    if PEERS[peer].program == "peft":
        pytest.importorskip("peft", reason="the extra 'peers' is not installed")
    config = replace(config, global_batch_size=16, train_samples=33)
    assert plan_training(config).steps == 9
    summary = run_peer(peer, config, ["train"])
    assert summary.steps == steps
    assert summary.epochs == pytest.approx(min(3, steps * 16 / 33))
    assert OTHER_STEPS in summary.differences


@pytest.mark.parametrize("name", ["peft", "peft-dora", "peft-rslora"])
def test_peft_gives_the_logits_of_litgpts_model_with_its_adapter(name, config, tmp_path):
    """The converted weights, and the adapter brought back, compute what they computed there."""
    pytest.importorskip("peft", reason="the extra 'peers' is not installed")
    from dataclasses import replace

    targets = {"lora_key": True, "lora_projection": True, "lora_mlp": True, "lora_head": True}
    plan = plan_training(replace(config, **targets))
    kind = PEERS[name]
    theirs = peer_peft._build_model(plan, tmp_path / "base", kind).eval()
    torch.manual_seed(0)
    for key, parameter in theirs.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter)
        if "magnitude" in key:
            assert parameter.requires_grad
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    adapter = {
        key.replace(".default", ""): p.detach()
        for key, p in theirs.named_parameters()
        if "lora_" in key
    }
    adapter, factors = peer_peft._as_lora(theirs, adapter, plan, kind)
    assert bool(factors) == kind.has_magnitudes
    base = load_checkpoint(config.checkpoint_dir, CPU, torch.float32)
    ours = build_model(plan.settings, base, CPU, seed=1).eval()
    ours.load_state_dict(peer_peft._to_litgpt(adapter, plan), strict=False)
    embedding = ours.transformer.wte.weight.clone()
    _multiply_rows(ours, peer_peft._factors_to_litgpt(factors, plan))
    assert torch.equal(ours.transformer.wte.weight, embedding)
    tokens = torch.randint(320, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=1e-4, atol=1e-4)


def test_dora_trains_the_magnitude_of_every_row(config, tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="the extra 'peers' is not installed")
    plan, seen = plan_training(config), []
    build = peer_peft._build_model

    def remember(*args):
        model = build(*args)
        named = model.named_parameters()
        seen.extend((p, p.detach().clone()) for name, p in named if "magnitude" in name)
        return model

    monkeypatch.setattr(peer_peft, "_build_model", remember)
    run = peer_peft.train_with_peft(plan, tmp_path, PEERS["peft-dora"])
    expected = count_magnitudes(plan.settings, plan.model_config)
    assert sum(p.numel() for p, _ in seen) == expected > 0
    assert all((p != before).all() for p, before in seen)
    adapter = sum(value.numel() for value in run.adapter.values())
    assert run.trainable_parameters == adapter + expected


def test_what_dora_costs_beside_lora(config):
    """Through the identity once a pass; the weight once more for what dropout leaves."""
    from dataclasses import replace

    plan = plan_training(config)
    settings, model = plan.settings, plan.model_config
    layers = 4 * 2  # of 16 inputs and outputs, rank 4
    alone = count_extra_flops(settings, model, tokens=10, samples_a_pass=1)
    again = layers * 2 * 10 * 16 * 16
    a_pass = layers * (2 * 4 * 16 * 32 + 4 * 16 * 16)
    assert alone == {"train_forward_flops": a_pass + again, "backward_flops": again}
    shared = count_extra_flops(settings, model, tokens=10, samples_a_pass=4)
    assert shared["train_forward_flops"] == a_pass // 4 + again
    undropped = replace(settings, lora=settings.lora | {"lora_dropout": 0.0})
    assert count_extra_flops(undropped, model, 10, 1)["backward_flops"] == 0


def test_peft_sees_the_micro_batches_of_every_method(config):
    from skip2bench.data.samples import micro_batches
    from skip2bench.train.training import planned_batches

    plan = plan_training(config)
    order, differences = peer_peft._lay_out(plan, 4)
    batches = planned_batches(config, plan.data, plan.steps)
    expected = [micro_batches(batch, plan.data.train.lengths, 4) for batch in batches]
    assert order == [i for parts in expected for part in parts for i in part]
    # the last batch of an epoch is smaller, which the Trainer cannot know
    assert differences[-1] == "a global batch crosses the end of an epoch"


def test_litgpt_is_given_every_setting(config, tmp_path):
    command = peer_litgpt.litgpt_command(plan_training(config), tmp_path)
    given = dict(zip(command[5::2], command[6::2], strict=True))
    assert given["--lora_r"] == "4"
    assert given["--train.epochs"] == "3"
    assert given["--data.mask_prompt"] == "false"
    assert given["--precision"] == "32-true"
    optimizer = json.loads(given["--optimizer"])
    assert optimizer["init_args"] == {"lr": 3e-2, "weight_decay": 0.01, "betas": [0.9, 0.999]}


def test_a_peer_that_fails_is_an_error_with_its_last_line(config, monkeypatch):
    command = ["python", "-c", "import sys; print('no such thing'); sys.exit(3)"]
    monkeypatch.setattr(peer_litgpt, "litgpt_command", lambda *_: command)
    with pytest.raises(
        Skip2BenchError, match=r"litgpt finetune_lora ended with exit status 3 \(no such thing\)"
    ):
        run_peer("litgpt", config, ["train"])
    assert read_run(config.out_dir).summary.status == "failed"


def test_data_that_a_peer_cannot_get_is_an_error(config):
    from dataclasses import replace

    plan = plan_training(config)
    with pytest.raises(Skip2BenchError, match="peers cannot train on 'alpaca2k'; give pydoc or"):
        check_peers(("litgpt",), replace(plan, config=replace(config, data="alpaca2k")))
    with pytest.raises(Skip2BenchError, match="peers cannot leave out 3 samples without"):
        check_peers(("litgpt",), replace(plan, data=replace(plan.data, dropped=3)))
    with pytest.raises(Skip2BenchError, match="size 8 is no multiple of micro_batch_size 3; give"):
        check_peers(("litgpt",), replace(plan, config=replace(config, micro_batch_size=3)))
    with pytest.raises(Skip2BenchError, match="peers run without compile"):
        check_peers(("litgpt",), replace(plan, config=replace(config, compile=True)))


def test_the_names_that_are_typed_are_those_of_the_table():
    assert get_args(PeerName) == tuple(PEERS)


def test_a_missing_package_names_the_extra(config, monkeypatch):
    monkeypatch.setattr("skip2bench.compare.peers.run.find_spec", lambda _name: None)
    with pytest.raises(
        Skip2BenchError, match="needs transformers, peft, accelerate; pip install 'skip2bench"
    ):
        check_peers(("peft",), plan_training(config))


@pytest.mark.parametrize("lang", ["ja"])
def test_every_difference_has_its_words_in_the_report(lang):
    template = Path(__file__).parents[3] / "templates" / f"report.{lang}.md.j2"
    text = template.read_text(encoding="utf-8")
    for difference in (
        *peer_litgpt.DIFFERENCES,
        *peer_peft.DIFFERENCES,
        OTHER_STEPS,
        OF_LAST_ADAPTER,
        *(peer_peft.OF_DORA, peer_peft.OF_DORA_DROPPED, peer_peft.OF_RSLORA),
        "a global batch crosses the end of an epoch",
    ):
        assert f'"{difference}":' in text
