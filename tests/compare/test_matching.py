"""Ranks of equal memory, epochs or samples of equal time, and how they are kept."""

import json

import pytest
from tiny import as_written

from skip2bench.compare import matching, run
from skip2bench.compare.matching import (
    MOST_EPOCHS,
    PACE_EPOCHS,
    _make_projector,
    describe_parameters,
    expect_equal_time,
    find_largest,
    list_pace_cells,
    list_undecided,
    match_key,
    match_memory,
    match_time,
    read_matches,
    settle_matches,
    write_matches,
)
from skip2bench.compare.matrix import list_cells
from skip2bench.compare.plan import plan_comparison
from skip2bench.compare.run import run_comparison
from skip2bench.compare.verify import run_verify
from skip2bench.config.compare import load_compare_config
from skip2bench.errors import Skip2BenchError
from skip2bench.results.figures import CellResult
from skip2bench.results.run_records import TrainSummary


@pytest.fixture
def settings(tiny_checkpoint, tiny_data):
    return {
        "checkpoint_dir": str(tiny_checkpoint),
        "data": str(tiny_data),
        "device": "cpu",
        "bench": False,
        "seeds": 1,
        "methods": "lora,lora-all,full,skip2",
        "blocks": ["0,1"],
        "global_batch_size": 8,
        "micro_batch_size": 4,
    }


@pytest.fixture
def plan(settings):
    def make(**changes):
        return plan_comparison(load_compare_config(settings | changes), ["compare"])

    return make


@pytest.mark.parametrize("most", [1, 2, 7, 8, 64])
def test_the_largest_that_fits_is_found(most):
    for largest in range(1, most + 1):
        assert find_largest(lambda n, largest=largest: n <= largest, most) == largest
    assert find_largest(lambda _: False, most) == 1


def test_ranks_of_equal_memory_are_the_largest_that_fit(plan):
    switches = dict.fromkeys(("lora_key", "lora_projection", "lora_mlp"), True)
    entries = [{"method": "lora-all", "lora_r": 3}, {"method": "lora", **switches}]
    entries += [{"method": "full"}, {"method": "skip2", "blocks": "0,1"}]
    made = plan(match="memory", configurations=entries, baseline="lora-all", aa=True)
    matches = match_memory(made)
    every, again = matches["lora-all"], matches["lora-all-aa"]
    assert (every.rank, every.ratio, every.limit) == (3, 1.0, "baseline")
    assert (again.rank, again.limit) == (3, "baseline")
    assert (matches["full"].rank, matches["full"].limit) == (None, "no_rank")
    assert matches["full"].ratio > 0
    for name, match in matches.items():
        if match.limit is None:
            assert match.ratio <= 1, name
        elif match.limit == "lowest":
            assert (match.rank, match.ratio > 1) == (1, True), name
    # the same layers have the same rank, and one above it does not fit
    lora = matches["lora"]
    assert lora.to_plain() == {"rank": 3, "ratio": 1.0, "limit": None}
    for rank, fits in ((3, True), (4, False)):
        settled = settle_matches(made, {"lora": lora.model_copy(update={"rank": rank})})
        one = next(one for one in settled.configurations if one.name == "lora")
        assert (_project(made, one) <= _project(made, made.configurations[0])) == fits


def _project(plan, one):
    found = _make_projector(plan, one).project(one.settings)
    return found.peak_bytes - found.process_bytes


def test_a_settled_comparison_has_the_ranks_that_were_decided(plan):
    made = plan(match="memory")
    matches = match_memory(made)
    settled = settle_matches(made, matches)
    for before, one in zip(made.configurations, settled.configurations, strict=True):
        assert one.settings.rank == matches[one.name].rank
        per_rank = before.trainable_parameters / (before.settings.rank or 1)
        assert one.trainable_parameters == per_rank * (one.settings.rank or 1)
    assert settled.matches == matches


def clock(name, train_seconds, epochs, **figures):
    """A cell that ended well."""
    summary = TrainSummary(
        schema_version=1,
        kind="train",
        status="ok",
        train_seconds=train_seconds,
        epochs=epochs,
        steps=10,
        initial_val_loss=2.0,
        final_val_loss=1.0,
        **figures,
    )
    return CellResult(
        name=name,
        configuration=name,
        role="pace",
        learning_rate=1e-3,
        seed=1,
        status="ok",
        summary=summary,
    )


def test_epochs_fill_the_baselines_time_and_no_more(plan):
    made = plan(match="time", epochs=3, aa=True)
    skip2 = clock("", 2.5, 2, cache_build_seconds=1.0, calibration_seconds=0.5)
    results = {
        "lora-lr0.001-seed1337": clock("", 30.0, 3),
        "lora-all-pace": clock("", 80.0, 2),
        "full-pace": clock("", 0.02, 2),
        "skip2-0-1-pace": skip2,
    }
    matches = match_time(made, results)
    # 0.5 s an epoch, after 1.5 s once: 57 epochs and not 58 in 30 s
    assert matches["skip2-0-1"].to_plain() == {"epochs": 57, "ratio": 1.0, "limit": None}
    assert (matches["lora-all"].epochs, matches["lora-all"].limit) == (1, "lowest")
    assert matches["lora-all"].ratio == pytest.approx(40 / 30)
    assert (matches["full"].epochs, matches["full"].limit) == (MOST_EPOCHS, "highest")
    assert matches["full"].ratio == pytest.approx(MOST_EPOCHS * 0.01 / 30)
    assert {matches[name].limit for name in ("lora", "lora-aa")} == {"baseline"}
    settled = settle_matches(made, matches)
    cells = list_cells(settled.config, settled.configurations, "cache")
    epochs = {c.configuration: c.config.epochs for c in cells if c.role == "run"}
    assert epochs == {"lora": 3, "lora-aa": 3, "lora-all": 1, "full": MOST_EPOCHS, "skip2-0-1": 57}


def test_samples_fill_the_baselines_time_and_no_more(plan):
    made = plan(match="time", time_for="samples", train_samples=8, epochs=3, aa=True)
    most = made.training.data.train_records
    assert (len(made.training.data.train), most) == (8, 38)
    short = {"train_samples": 8, "cache_build_seconds": 1.0, "calibration_seconds": 0.5}
    results = {
        "lora-lr0.001-seed1337": clock("", 12.0, 3),
        "lora-all-pace": clock("", 80.0, 2, train_samples=8),
        "full-pace": clock("", 0.02, 2, train_samples=8),
        "skip2-0-1-pace": clock("", 3.5, 2, **short),
    }
    matches = match_time(made, results)
    # 1 s to build and 3 epochs of 1 s for 8 samples, after 0.5 s once: 23 in 12 s, in whole batches
    skip2 = matches["skip2-0-1"]
    assert skip2.to_plain() == {"train_samples": 16, "ratio": 8.5 / 12, "limit": None}
    assert (matches["lora-all"].train_samples, matches["lora-all"].limit) == (8, "lowest")
    assert matches["lora-all"].ratio == pytest.approx(120 / 12)
    assert (matches["full"].train_samples, matches["full"].limit) == (most, "highest")
    assert {matches[name].train_samples for name in ("lora", "lora-aa")} == {8}
    settled = settle_matches(made, matches)
    cells = list_cells(settled.config, settled.configurations, "cache")
    given = {c.configuration: (c.config.train_samples, c.config.epochs) for c in cells}
    assert given["skip2-0-1"] == (16, 3)
    assert given["full"] == (most, 3)


def test_at_equal_time_no_cache_is_kept(plan):
    made = plan(match="time")
    cells = list_cells(made.config, made.configurations, "cache")
    assert {cell.role for cell in cells} == {"run"}


def test_what_has_no_pace_keeps_its_epochs(plan):
    made = plan(match="time", epochs=3)
    results = {"lora-lr0.001-seed1337": clock("", 30.0, 3)}
    assert match_time(made, results)["skip2-0-1"].to_plain() == {
        "epochs": 3,
        "ratio": None,
        "limit": "failed",
    }


def test_short_runs_are_those_of_all_but_the_baseline(plan):
    made = plan(match="time", epochs=5, aa=True, learning_rates="1e-3,1e-2")
    cells = list_pace_cells(made.config, made.configurations)
    assert [cell.name for cell in cells] == ["lora-all-pace", "full-pace", "skip2-0-1-pace"]
    assert {(c.role, c.config.epochs, c.config.learning_rate) for c in cells} == {
        ("pace", PACE_EPOCHS, 1e-3)
    }


def test_runs_at_equal_time_are_expected_to_take_the_baselines(plan):
    made = plan(match="time")
    cells = list_cells(made.config, made.configurations, "cache")
    seconds = {cell.name: 10.0 if cell.configuration == "lora" else 1.0 for cell in cells}
    paces = list_pace_cells(made.config, made.configurations)
    seconds |= {cell.name: 1.0 for cell in paces}
    expected = expect_equal_time(made, [*cells, *paces], seconds)
    assert {expected[cell.name] for cell in cells} == {10.0}
    assert {expected[cell.name] for cell in paces} == {1.0}


def test_what_failed_is_decided_again(plan, tmp_path):
    made = plan(match="time", epochs=3)
    results = {"lora-lr0.001-seed1337": clock("", 30.0, 3)}
    write_matches(tmp_path, "time", match_key(made), match_time(made, results))
    assert read_matches(tmp_path, match_key(made)) is None
    assert list_undecided(tmp_path) == ["lora-all", "full", "skip2-0-1"]


def test_epochs_are_not_decided_for_samples(plan):
    shared = {"match": "time", "train_samples": 8}
    assert match_key(plan(**shared)) != match_key(plan(**shared, time_for="samples"))


def test_what_was_decided_is_kept_for_the_same_comparison_alone(plan, tmp_path):
    made = plan(match="memory")
    matches = match_memory(made)
    assert read_matches(tmp_path, match_key(made)) is None
    write_matches(tmp_path, "memory", match_key(made), matches)
    assert read_matches(tmp_path, match_key(made)) == matches
    assert read_matches(tmp_path, match_key(plan(match="memory", lora_r=5))) is None
    (tmp_path / "matching.json").write_text('{"match": "memory"}')
    assert read_matches(tmp_path, match_key(made)) is None


def test_equal_parameters_are_described_too(plan):
    """--match params is --match-params."""
    old, new = plan(match_params=True), plan(match="params")
    ranks = [one.settings.rank for one in old.configurations]
    assert ranks == [one.settings.rank for one in new.configurations]
    assert old.config.matched == new.config.matched == "params"
    described = describe_parameters(new)
    assert [described[one.name].rank for one in new.configurations] == ranks
    assert (described["lora"].ratio, described["lora"].limit) == (1.0, "baseline")
    assert described["full"].limit == "no_rank"
    assert described["skip2-0-1"].ratio == pytest.approx(1, abs=0.2)


def test_a_comparison_at_equal_time_goes_on_with_the_epochs_it_had(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "MOST_EPOCHS", 5)  # a tiny model's cached epochs take no time
    changes = {"methods": "lora,skip2", "match": "time", "epochs": 2, "learning_rates": "1e-2"}
    config = load_compare_config(settings | changes | {"out_dir": tmp_path / "out"})
    results = as_written(run_comparison(config, ["compare"]))
    assert results["statuses"] == {"ok": 3}  # a short run among them
    lora, skip2 = results["configurations"]
    assert lora["matched"] == {"epochs": 2, "ratio": 1.0, "limit": "baseline"}
    kept = json.loads((tmp_path / "out/matching.json").read_text())["configurations"]
    assert kept["skip2-0-1"] == skip2["matched"]
    cells = results["cells"]
    own = next(cell for name, cell in cells.items() if name == "skip2-0-1-lr0.01-seed1337")
    assert own["figures"]["epochs"] == skip2["matched"]["epochs"]
    assert cells["skip2-0-1-pace"]["role"] == "pace"
    # figures are those of the runs alone
    assert skip2["figures"]["epochs"]["mean"] == skip2["matched"]["epochs"]

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("cells/*.json")}
    (tmp_path / "out/cells/skip2-0-1-lr0.01-seed1337.json").unlink()
    again = as_written(run_comparison(config, ["compare"]))
    assert again["configurations"][1]["matched"] == skip2["matched"]
    changed = {path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {
        "skip2-0-1-lr0.01-seed1337.json",
        "skip2-0-1-lr0.01-seed1337.spec.json",
    }


def test_in_the_baselines_time_a_cached_method_sees_more_samples(settings, tmp_path):
    changes = {"methods": "lora,skip2", "match": "time", "time_for": "samples", "epochs": 2}
    changes |= {"train_samples": 8, "out_dir": tmp_path / "out", "seeds": 4, "eval_interval": 99}
    changes["configurations"] = [
        {"method": "lora", "learning_rates": [1e-2]},
        {"method": "skip2", "blocks": "0,1", "learning_rates": "auto"},
    ]
    results = as_written(run_comparison(load_compare_config(settings | changes), ["compare"]))
    lora, skip2 = results["configurations"]
    # the seed that the search had is in no figure, the baseline's run by which time was made equal
    # among them
    assert lora["seeds"] == skip2["seeds"] == [1338, 1339, 1340]
    assert results["cells"]["lora-lr0.01-seed1337"]["is_left_out"]
    assert not run_verify(tmp_path / "out").differences
    assert lora["matched"] == {"train_samples": 8, "ratio": 1.0, "limit": "baseline"}
    samples = skip2["matched"]["train_samples"]
    runs = [it for it in results["cells"].values() if it["configuration"] == "skip2-0-1"]
    steps = {it["figures"]["steps"] for it in runs if it["role"] == "run"}
    assert steps == {2 * -(-samples // 8)}
    assert {it["figures"]["epochs"] for it in runs} == {2}


def test_without_the_baselines_time_nothing_is_given(settings, tmp_path):
    changes = {"methods": "lora,skip2", "match": "time", "epochs": 2, "max_memory": "1MiB"}
    config = load_compare_config(settings | changes | {"out_dir": tmp_path / "out"})
    with pytest.raises(Skip2BenchError, match=r"lora-lr0.001-seed1337 did not end well, so there"):
        run_comparison(config, ["compare"])
    assert not (tmp_path / "out/matching.json").exists()


def test_a_comparison_at_equal_memory_projects_once(settings, tmp_path, monkeypatch):
    changes = {"methods": "lora,last", "match": "memory", "max_steps": 2, "eval_interval": 2}
    config = load_compare_config(settings | changes | {"out_dir": tmp_path / "out"})
    results = as_written(run_comparison(config, ["compare"]))
    lora, last = results["configurations"]
    assert lora["matched"]["limit"] == "baseline"
    assert (last["matched"]["rank"], last["matched"]["limit"]) == (None, "no_rank")
    kept = json.loads((tmp_path / "out/matching.json").read_text())
    assert kept["configurations"]["last"] == last["matched"]
    monkeypatch.setattr(run, "match_memory", lambda _: pytest.fail("projected again"))
    again = as_written(run_comparison(config, ["compare"]))
    assert [one["matched"] for one in again["configurations"]] == [
        lora["matched"],
        last["matched"],
    ]
