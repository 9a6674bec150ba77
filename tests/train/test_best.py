"""What a run keeps in the end: the best adapter, early stops, clipping; what it says of a loss."""

import math

import pytest
import torch
from safetensors.torch import load_file

from skip2bench.errors import DivergedError
from skip2bench.results.reading import read_run
from skip2bench.train.cached_objective import CachedObjective
from skip2bench.train.objective import TokenObjective, Validation
from skip2bench.train.state import Progress, State, StateFolder
from skip2bench.train.training import find_best_step

LOSSES = [5.0, 4.0, 3.0, 3.5, 3.2, 3.5, 3.1, 3.6, 3.7, 3.8, 3.9]
"""What validation is made to find, step by step: the lowest at step 2."""
METHODS = ["skip2", "skip", "lora", "full", "last"]


def read_adapter(folder):
    """What trained, from `final`."""
    final = folder / "final"
    if (final / "adapter.safetensors").is_file():
        return load_file(final / "adapter.safetensors")
    path = final / (
        "lit_model.pth.lora" if (final / "lit_model.pth.lora").is_file() else "lit_model.pth"
    )
    saved = torch.load(path, weights_only=True)
    return saved.get("model", saved)


def find_best(metrics):
    trained = metrics[metrics["step"] > 0]
    return int(trained["step"][trained["val_loss"].idxmin()])


@pytest.fixture
def rising(train, monkeypatch):
    """A run whose loss is lowest before its end."""

    def run(name, method, **changes):
        losses = iter(LOSSES)
        for objective in (CachedObjective, TokenObjective):
            monkeypatch.setattr(objective, "validate", lambda _: Validation(next(losses), 0.5))
        return train(name, method=method, **({"eval_interval": 1, "max_steps": 6} | changes))

    return run


@pytest.mark.parametrize("method", METHODS)
def test_the_adapter_of_the_lowest_loss_is_saved(rising, method):
    """It is the last one of a run that never came to another: one that stops there."""
    summary, metrics, _, folder = rising("best", method)
    best = find_best(metrics)
    assert best == 2
    assert summary["kept_step"] == best
    assert summary["kept_val_loss"] == metrics["val_loss"][best]
    assert summary["final_val_loss"] == metrics["val_loss"][6] > summary["kept_val_loss"]
    last = rising("last", method, keep="last")
    assert last[0]["kept_step"] == 6
    assert last[0]["final_val_loss"] == summary["final_val_loss"]
    # one that has no patience left is at the step where it gained last
    one, another = read_adapter(folder), read_adapter(last[3])
    assert one.keys() == another.keys()
    assert any(not torch.equal(one[name], another[name]) for name in one)
    assert not (folder / "state").exists()


def test_the_best_adapter_is_what_was_trained_until_there(rising, monkeypatch):
    """Against the weights that the run had after that step."""
    seen = {}
    from skip2bench.train import loop

    before = loop.set_aside_best

    def look(run, progress):
        seen[progress.step] = run.model.adapters.lora_B.detach().clone()
        before(run, progress)

    monkeypatch.setattr(loop, "set_aside_best", look)
    summary, _, _, folder = rising("run", "skip2")
    saved = load_file(folder / "final" / "adapter.safetensors")["adapters.lora_B"]
    assert torch.equal(saved, seen[summary["kept_step"]])


def test_forgetting_is_that_of_what_is_saved(rising, tmp_path):
    text = tmp_path / "domain.txt"
    text.write_text("one two three four five six seven eight nine ten " * 30)
    last, best = (
        rising(keep, "skip2", keep=keep, domain_text=str(text))[0] for keep in ("last", "best")
    )
    assert last["domain_loss_before"] == best["domain_loss_before"]
    assert last["domain_loss_after"] != best["domain_loss_after"]


def test_what_cannot_be_read_back_leaves_the_last_adapter(rising, monkeypatch, capsys):
    from skip2bench.train.state import DamagedStateError

    def fail(*_):
        raise DamagedStateError("it is gone")

    monkeypatch.setattr(StateFolder, "read_best", fail)
    summary = rising("run", "skip2")[0]
    assert summary["kept_step"] == 6
    assert "is lost (it is gone); the last one is saved" in capsys.readouterr().err


def test_only_what_a_state_refers_to_stays(tmp_path):
    folder = StateFolder(tmp_path)
    for step in (1, 2, 5):
        folder.save_best(step, {"a": torch.tensor([float(step)])})
    folder.drop_best_but([2, None, 5])
    assert sorted(p.name for p in folder.path.iterdir()) == [
        "best-00000002.safetensors",
        "best-00000005.safetensors",
    ]
    assert folder.read_best(2)["a"] == 2
    assert folder.files() == []
    folder.save(3, State(tensors={}, values={}))
    assert len(folder.files()) == 1


@pytest.mark.parametrize(
    ("losses", "step"), [([3, 2, 1], 2), ([1, 2, 3], 1), ([3, 2, 2], 1), ([3], None)]
)
def test_the_first_of_the_lowest_counts_and_the_start_does_not(losses, step):
    assert find_best_step(Progress(val_losses=list(enumerate(losses)))) == step


def test_patience_ends_a_run_that_gains_nothing(rising):
    whole = rising("whole", "skip2", max_steps=10)
    best = find_best(whole[1])
    summary, metrics, steps, folder = rising("early", "skip2", max_steps=10, patience=2)
    assert summary["status"] == "ok"
    assert summary["stopped_early"] is True
    assert summary["steps"] == len(steps) == best + 2
    assert summary["planned_steps"] == 10
    assert metrics["val_loss"].tolist() == whole[1]["val_loss"].tolist()[: best + 3]
    assert steps["learning_rate"].tolist() == whole[2]["learning_rate"].tolist()[: best + 2]
    assert whole[0]["stopped_early"] is False
    assert read_run(folder).summary.kept_step == best


def test_runs_with_the_same_patience_compare_and_others_do_not(train, rising):
    from skip2bench.results.conditions import read_conditions

    early, other, without = (
        read_conditions(read_run(rising(name, "skip2", **changes)[3]))
        for name, changes in {
            "early": {"patience": 1, "max_steps": 10},
            "other": {"patience": 1, "max_steps": 10, "learning_rate": 1e-3},
            "without": {"max_steps": 10},
        }.items()
    )
    assert early == other
    assert early != without


@pytest.mark.parametrize("method", ["skip2", "lora"])
def test_what_diverges_with_clipping_is_named(train, method):
    with pytest.raises(DivergedError, match=r"the loss is \w+ at step \d+; lower"):
        train(method=method, learning_rate=1e30, max_norm=1.0, max_steps=8)


@pytest.mark.parametrize("method", ["skip2", "lora"])
def test_clipping_bounds_the_step(train, method):
    """Sums of squared gradients are AdamW's second moment after one step."""
    import skip2bench.train.loop as loop

    norms = []
    original = loop._note_step

    def look(run, progress, *rest):
        states = run.optimizer.state_dict()["state"].values()
        norms.append(math.sqrt(sum(float(s["exp_avg_sq"].sum()) / 1e-3 for s in states)))
        original(run, progress, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_note_step", look)
        train("free", method=method, max_steps=1)
        train("loose", method=method, max_steps=1, max_norm=1e9)
        train("tight", method=method, max_steps=1, max_norm=norms[0] / 4)
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    assert norms[2] == pytest.approx(norms[0] / 4, rel=1e-3)


def test_a_run_that_ends_above_its_start_says_so(train, capsys):
    bad = {"learning_rate": 5.0, "eval_interval": 1, "max_steps": 2, "lr_warmup_steps": 0}
    train("bad", method="skip2", **bad)
    err = capsys.readouterr().err
    assert "warning: the validation loss ends at" in err
    assert "above the" in err
    assert "try --learning-rate 2, or fewer --epochs" in err
    train("good", method="skip2", max_steps=2)
    assert "the validation loss ends at" not in capsys.readouterr().err
