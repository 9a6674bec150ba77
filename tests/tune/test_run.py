"""Whole sweeps on the tiny model."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from skip2bench.compare import cell, task
from skip2bench.compare.process import Outcome, read_cell_run
from skip2bench.config.tune import DEFAULT_BLOCKS, TuneConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.whole import utc_now
from skip2bench.results.tune_records import TUNE_COLUMNS
from skip2bench.tune import budget, explore, state
from skip2bench.tune.run import run_tune


@pytest.fixture
def tune(train, tmp_path):
    """Sweep, and return (what was found, curves, run folder)."""

    def run(name="tune", **changes):
        own = {
            "budget": "4",
            "blocks": ("0,1", "2,3", "all"),
            "ranks": (1, 2),
            "finalists": 0,
            "out_dir": tmp_path / name,
        }
        values = {
            "checkpoint_dir": str(train.checkpoint),
            "data": str(train.data),
            "global_batch_size": 8,
            "max_steps": 12,
            "device": "cpu",
        }
        train_keys = {k: v for k, v in changes.items() if k not in TuneConfig.__dataclass_fields__}
        own |= {k: v for k, v in changes.items() if k not in train_keys}
        result = run_tune(TuneConfig(**own, train=values | train_keys))
        folder = tmp_path / name
        return result, pd.read_csv(folder / "tune.csv"), folder

    return run


def test_configurations_of_lora_top_are_whole_runs(tune, monkeypatch):
    result, curves, folder = tune(
        **{"method": "lora-top", "budget": "3", "blocks": DEFAULT_BLOCKS, "top_blocks": (1, 2)},
        **{"ranks": (2,), "learning_rates": (1e-3, 1e-2), "finalists": 1, "seeds": 2},
    )
    assert tuple(curves.columns) == TUNE_COLUMNS
    found = json.loads((folder / "tune.json").read_text())
    rows = {row["name"]: row for row in found["configurations"]}
    # the usual quarter of four blocks at the middle rate, and three drawn of the four there are
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert 3 <= len(rows) == result.configurations <= 4
    assert {row["step"] for row in rows.values()} == {12}
    (rung,) = found["rungs"]
    assert (rung["step"], rung["configurations"]) == (12, len(rows))
    blocks = {len(row["blocks"]) for row in rows.values()}
    assert blocks == {1, 2}
    assert all(row["blocks"][-1] == 3 for row in rows.values())
    # each curve is that of the run of its own, whose adapter anybody can load
    best = found["configurations"][0]
    run = json.loads(
        next(
            folder.glob(f"exploration/cells/*lr{best['learning_rate']:g}*/summary.json")
        ).read_text()
    )
    assert run["initial_val_loss"] == result.initial_val_loss
    assert result.best_val_loss == best["best_val_loss"] == min(curves["val_loss"])
    assert len(found["finalists"]) == (2 if best["blocks"] != [3] else 1)
    (pick, *_) = found["picks"]
    assert "--method lora-top" in pick["command"]
    assert "--top-blocks" in pick["command"]
    assert "--lora-r 2" in pick["command"]
    assert not (folder / ".cache").exists()


def test_a_sweep_of_runs_goes_on_where_it_was_stopped(tune, monkeypatch):
    values = {
        **{"method": "lora-top", "budget": "2", "blocks": DEFAULT_BLOCKS, "top_blocks": (1,)},
        **{"ranks": (2,), "learning_rates": (1e-3, 1e-2)},
    }
    run_cell, started = task.run_cell, []

    def stop_at_second(spec, *args):
        started.append(spec["out_dir"])
        if len(started) == 2:
            raise KeyboardInterrupt
        return run_cell(spec, *args)

    monkeypatch.setattr(task, "run_cell", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        tune(**values)
    result, _, _ = tune(**values)
    assert result.status == "ok"
    assert len(started) == 3  # the first one was not repeated
    with pytest.raises(Skip2BenchError, match="that is done"):
        tune(**values)


def test_a_sweep_writes_what_the_design_says(tune):
    result, curves, folder = tune()
    assert tuple(curves.columns) == TUNE_COLUMNS
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} >= {
        *("config.yaml", "environment.json", "summary.json", "tune.csv", "tune.json"),
        "frontier.svg",
    }
    assert not (folder / "state").exists()
    assert not (folder / ".cache").exists()
    found = json.loads((folder / "tune.json").read_text())
    assert found["rungs"][-1]["step"] == result.planned_steps == 12
    rows = found["configurations"]
    finished = [row for row in rows if row["status"] == "finished"]
    losses = [row["best_val_loss"] for row in finished]
    assert rows[: len(finished)] == finished
    assert losses == sorted(losses)
    assert losses[0] < found["initial_val_loss"]
    assert set(curves["configuration"]) == {row["name"] for row in rows}
    assert {row["origin"] for row in rows} >= {"guide", "drawn", "single", "screened", "rate"}
    start = curves[curves["step"] == 0]
    assert start["val_loss"].tolist() == pytest.approx([found["initial_val_loss"]] * len(rows))
    by_name = {row["name"]: row for row in rows}
    for name, own in curves.groupby("configuration"):
        assert own["val_loss"].iloc[1:].min() == pytest.approx(by_name[name]["best_val_loss"])
    assert {row["factor"] for row in found["sensitivity"]} == {"blocks", "rank", "learning_rate"}


def test_halves_are_cut_and_the_cheapest_stays(tune):
    result, _, _ = tune(screening=False, learning_rates=(1e-2,), budget="6")
    rungs = result.found.rungs
    assert [rung.step for rung in rungs] == [3, 6, 12]
    for rung in rungs[:-1]:
        assert rung.kept in (math.ceil(rung.configurations / 2), rung.configurations // 2 + 2)


class _KilledError(Exception):
    pass


def test_a_sweep_that_was_killed_loses_no_rung(tune, monkeypatch):
    whole, curves, _ = tune("whole")
    save = state.save

    def save_and_die(exploration, *arguments):
        save(exploration, *arguments)
        if len(exploration.rungs) == 2:
            raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(state, "save", save_and_die)
        with pytest.raises(_KilledError):
            tune("killed")
    climbed = []
    climb = explore.Exploration._climb
    monkeypatch.setattr(
        explore.Exploration,
        "_climb",
        lambda it, number: climbed.append(number) or climb(it, number),
    )
    resumed, resumed_curves, _ = tune("killed")
    assert climbed == [2]
    pd.testing.assert_frame_equal(curves, resumed_curves, rtol=1e-5)
    assert resumed.found.picks == whole.found.picks
    with pytest.raises(Skip2BenchError, match="holds a run already"):
        tune("killed")


def test_another_sweep_does_not_go_on_with_it(tune, monkeypatch):
    def die(*_):
        raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(explore, "note", die)
        patch.setattr("skip2bench.tune.run._end", die)
        with pytest.raises(_KilledError):
            tune(screening=False)
    with pytest.raises(Skip2BenchError, match=r"a sweep of another configuration|holds a run"):
        tune(screening=False, ranks=(1, 3))
    result, *_ = tune(screening=False, ranks=(1, 3), force=True)
    assert result.status == "ok"


def test_what_diverges_is_listed_and_leaves(tune):
    result, curves, _ = tune(learning_rates=(1e-2, 1e20), screening=False, budget="12")
    diverged = [row for row in result.found.configurations if row.status == "diverged"]
    assert diverged
    assert result.diverged == len(diverged) == sum(rung.diverged for rung in result.found.rungs)
    assert result.found.configurations[-len(diverged) :] == tuple(diverged)
    assert {row.learning_rate for row in diverged} == {1e20}
    assert curves["val_loss"].notna().all()


def test_where_all_diverge_it_is_said(tune):
    with pytest.raises(Skip2BenchError, match="every configuration has diverged"):
        tune(learning_rates=(1e20,), screening=False)


def run_here(spec, _spec_file, _log_file, _context, _should_stop):
    """A cell in this process, which saves starting one."""
    cell._run(spec)
    outcome = Outcome(
        status="ok",
        error=None,
        started_at=utc_now(),
        wall_seconds=1.0,
        other_cpu_cores=0.0,
        exit_status=0,
    )
    return outcome, read_cell_run(Path(spec["out_dir"]))


def test_the_finalists_are_runs_of_a_comparison(tune, monkeypatch):
    monkeypatch.setattr("skip2bench.compare.task.run_cell", run_here)
    monkeypatch.setattr("skip2bench.compare.run.load_modules", lambda _context: None)
    result, _, folder = tune(finalists=1, seeds=1, blocks=("2,3",), ranks=(2,), screening=False)
    found = result.found
    assert len(found.finalists) == len(found.finalist_names) == 2
    assert found.finalists[0].is_baseline
    assert found.finalists[0].blocks == (0, 1, 2, 3)
    assert {pick.is_tested for pick in found.picks} == {True}
    by_name = {row.name: row for row in found.configurations}
    for name, entry in zip(found.finalist_names, found.finalists, strict=True):
        assert entry.learning_rate == by_name[name].learning_rate
        assert entry.figures["best_val_loss"].mean < found.initial_val_loss
    assert (folder / "finalists" / "comparison_results.json").is_file()


def test_where_time_runs_out_fewer_go_on(tune, monkeypatch):
    monkeypatch.setattr(explore.Exploration, "_spent_seconds", property(lambda it: 1e6))
    result, *_ = tune(budget="60s", screening=False)
    assert [rung.kept for rung in result.found.rungs] == [1, 1, 0]


def test_a_cache_that_fits_nowhere_is_one_line(tune):
    with pytest.raises(Skip2BenchError, match="has room anywhere; use --cache-project N"):
        tune(cache_max_bytes="1")


def test_blocks_auto_are_chosen_on_the_data(tune):
    result, *_ = tune(blocks=("auto:2",), screening=False, learning_rates=(1e-2,))
    drawn = [row for row in result.found.configurations if row.origin == "drawn"]
    (blocks,) = {row.blocks for row in drawn}
    assert len(blocks) == 2


def test_a_sweep_of_projected_features(tune):
    result, *_ = tune(cache_project=4, screening=False, learning_rates=(1e-2,))
    assert result.found.configurations[0].best_val_loss < result.found.initial_val_loss


def test_a_budget_of_time_decides_how_many_begin(tune, monkeypatch):
    monkeypatch.setattr(budget, "_measure", lambda *_: (0.1, 0.0))  # a step costs what it costs
    result, *_ = tune(budget="60s")
    drawn = [row for row in result.found.configurations if row.origin == "drawn"]
    assert len(drawn) + 1 >= 18  # all there are, but for the guide's among them
    monkeypatch.setattr(budget, "_measure", lambda *_: (10.0, 0.0))
    with pytest.raises(Skip2BenchError, match="budget 5s is too small"):
        tune("small", budget="5s")
