"""`--learning-rate auto`: the rate that a short search finds."""

import math

import pytest

from skip2bench.errors import Skip2BenchError
from skip2bench.train import loop, rate
from skip2bench.train.rate import search


def test_a_search_goes_beyond_the_edges_while_the_best_is_there():
    asked = []

    def losses(rates):
        asked.append(list(rates))
        return [abs(math.log(it / 0.08)) for it in rates]

    found = search(losses, 3e-3)
    assert asked == [[1e-3, 3e-3, 9e-3], [0.027], [0.081], [0.243]]
    assert min(found, key=found.__getitem__) == 0.081


def test_a_rate_that_diverges_is_an_edge_that_is_not_crossed():
    found = search(lambda rates: [it if it < 5e-3 else math.inf for it in rates], 3e-3)
    assert min(found, key=found.__getitem__) == min(found)
    assert min(found) < 1e-6  # lower was always better
    assert max(found) == 9e-3


@pytest.mark.parametrize("method", ["skip2", "lora", "lora-top", "skip", "full"])
def test_a_run_takes_the_best_rate_and_says_why(train, method):
    summary, _, steps, _ = train(method=method, learning_rate="auto")
    tried = {float(r): loss for r, loss in summary["learning_rates_tried"].items()}
    finite = {r: math.inf if loss is None else loss for r, loss in tried.items()}
    best = min(finite, key=finite.__getitem__)
    assert len(tried) >= 3
    assert summary["learning_rate"] == best
    assert summary["learning_rate_source"] == "search"
    assert summary["rate_search_seconds"] > 0
    assert steps["learning_rate"].max() == pytest.approx(best)
    # nothing of the search is left in what the run does
    _, _, given, _ = train("given", method=method, learning_rate=best)
    assert steps["loss"].tolist() == given["loss"].tolist()


def test_a_search_is_in_no_other_clock(train, monkeypatch):
    class Counting(rate._ShortRuns):
        def __call__(self, rates):
            self._run.clock.seconds["forward"] = 1e6
            return super().__call__(rates)

    monkeypatch.setattr(rate, "_ShortRuns", Counting)
    summary, _, steps, _ = train(method="lora", learning_rate="auto")
    assert summary["forward_seconds"] < 1e5
    assert steps["train_seconds"].max() < 1e5
    assert summary["rate_search_seconds"] > 0


def test_without_a_search_a_run_says_where_its_rate_is_from(train):
    assert train("given", learning_rate=2e-2)[0]["learning_rate_source"] == "given"
    assert train("default", learning_rate=3e-3)[0]["learning_rate_source"] == "default"


def test_where_every_rate_diverges_it_is_said(train, monkeypatch):
    monkeypatch.setattr(rate, "search", lambda *_: {1e-3: math.inf, 3e-3: math.inf})
    with pytest.raises(Skip2BenchError, match=r"every learning rate diverged \(0.001, 0.003\)"):
        train(learning_rate="auto")


def test_a_resumed_run_keeps_the_rate_that_was_found(train, monkeypatch):
    def interrupt(run, progress):
        if progress.step == 6:
            run.stop.is_made = True
        return original(run, progress)

    original = loop._save_state
    whole = train("whole", learning_rate="auto", save_interval=2)
    monkeypatch.setattr(loop, "_save_state", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train("stopped", learning_rate="auto", save_interval=2)
    monkeypatch.setattr(loop, "_save_state", original)
    monkeypatch.setattr(rate, "search", None)  # it is not made again
    resumed = train("stopped", learning_rate="auto", save_interval=2, resume=True)
    assert resumed[0]["learning_rate"] == whole[0]["learning_rate"]
    assert resumed[2]["loss"].tolist() == whole[2]["loss"].tolist()
