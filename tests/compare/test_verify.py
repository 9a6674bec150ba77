"""Committed results of a comparison, changed in one place each; and one as it was."""

import json
import shutil
from pathlib import Path

import pytest

from skip2bench.compare.verify import run_verify
from skip2bench.errors import Skip2BenchError
from skip2bench.results.reading import find_run, read_comparison
from skip2bench.results.registration import (
    Analysis,
    RegisteredPlan,
    Registration,
    describe_target,
    hash_plan,
)

FAILED = Path(__file__).parents[1] / "data" / "failed"
LORA = "lora-lr0.003-seed1337"
METRICS = f"cells/{LORA}/logs/version_0/metrics.csv"


@pytest.fixture
def folder(tmp_path):
    """A comparison without its reports, which are the slow part."""
    copy = tmp_path / "failed"
    shutil.copytree(FAILED, copy, ignore=shutil.ignore_patterns("report.*"))
    return copy


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def list_differences(folder, **more):
    return {(it.file, it.figure) for it in run_verify(folder, **more).differences}


def test_what_nobody_changed_is_what_the_files_say(folder):
    result = run_verify(folder)
    assert result.differences == ()
    assert result.cells == 6
    assert result.figures > 500
    assert any("wall_seconds" in text for text in result.unchecked)


def test_a_figure_of_a_configuration(folder):
    def halve(content):
        content["configurations"][0]["figures"]["train_seconds"]["mean"] /= 2

    edit(folder / "comparison_results.json", halve)
    (difference,) = run_verify(folder).differences
    assert difference.file == "comparison_results.json"
    assert difference.figure == "configurations[0].figures.train_seconds.mean"
    assert difference.recomputed == pytest.approx(2 * difference.stored)


def test_a_figure_that_was_taken_out(folder):
    edit(
        folder / "comparison_results.json",
        lambda content: content["cells"][LORA]["figures"].pop("final_val_loss"),
    )
    found = list_differences(folder)
    assert ("comparison_results.json", f"cells.'{LORA}'.figures.final_val_loss") in found


def test_a_cell_of_the_table(folder):
    path = folder / "comparison.csv"
    seed = next(line for line in path.read_text().splitlines() if line.startswith(LORA))
    change(path, seed, seed.replace(",1337,", ",1338,", 1))
    assert list_differences(folder) == {("comparison.csv", f"{LORA}: seed")}


@pytest.mark.parametrize("column", ["val_loss", "train_loss", "tokens", "train_seconds"])
def test_a_row_of_metrics(folder, column):
    path = folder / METRICS
    head, *rows = path.read_text().splitlines()
    middle = rows[len(rows) // 2].split(",")
    place = head.split(",").index(column)
    middle[place] = str(float(middle[place]) * (1 + 1e-4))
    rows[len(rows) // 2] = ",".join(middle)
    path.write_text("\n".join([head, *rows]) + "\n")
    files = {file for file, _ in list_differences(folder)}
    assert METRICS in files or f"cells/{LORA}" in files


def test_the_last_loss(folder):
    path = folder / METRICS
    *rows, last = path.read_text().splitlines()
    cells = last.split(",")
    cells[3] = "1.5"
    path.write_text("\n".join([*rows, ",".join(cells)]) + "\n")
    found = list_differences(folder)
    assert (f"cells/{LORA}/summary.json", "final_val_loss") in found
    assert any(file == METRICS and figure.endswith("val_ppl") for file, figure in found)


def test_a_lost_step(folder):
    path = folder / METRICS.replace("metrics", "steps")
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[:-1]) + "\n")
    assert (f"cells/{LORA}/summary.json", "steps") in list_differences(folder)


def test_a_figure_of_a_summary(folder):
    edit(folder / f"cells/{LORA}/summary.json", lambda it: it.update(train_seconds=0.5))
    found = list_differences(folder)
    assert (f"cells/{LORA}/summary.json", "train_seconds") in found
    assert ("comparison_results.json", f"cells.'{LORA}'.figures.train_seconds") in found
    assert ("comparison.csv", f"{LORA}: train_seconds") in found


def test_another_run_in_a_cells_place(folder):
    edit(folder / f"cells/{LORA}/summary.json", lambda it: it.update(seed=7))
    assert (f"cells/{LORA}/summary.json", "seed") in list_differences(folder)


def test_a_cell_that_was_removed(folder):
    shutil.rmtree(folder / "cells" / LORA)
    found = list_differences(folder)
    assert (f"cells/{LORA}", "run") in found
    assert ("comparison_results.json", f"cells.'{LORA}'.status") in found
    assert any(figure.startswith("configurations[0].figures") for _, figure in found)


def test_a_cell_that_the_results_leave_out(folder):
    name = "skip2-0-1-lr0.003-seed1337-reused"
    edit(folder / "comparison_results.json", lambda content: content["cells"].pop(name))
    assert (f"cells/{name}", "run") in list_differences(folder)


def test_a_report_that_was_changed(folder, tmp_path):
    report = tmp_path / "report.md"
    shutil.copy(FAILED / "report.en.md", report)
    assert list_differences(folder, report=report) == set()
    change(report, "Results", "Findings")
    (difference,) = run_verify(folder, report).differences
    assert difference.file == "report.md"
    assert (difference.stored, difference.recomputed) == ("## Findings", "## Results")


def test_the_command_line(folder, run, tmp_path):
    status, out, err = run("verify", str(folder))
    assert (status, err) == (0, "")
    assert "values of 6 runs compared: all are what the files say" in out
    shutil.rmtree(folder / "cells" / LORA)
    status, out, err = run("verify", str(folder), "--json")
    assert status == 1
    assert json.loads(out)["differences"][0]["file"] == f"cells/{LORA}"
    assert err.startswith("error: ")
    assert err.endswith("differ from what its runs' files say\n")
    (tmp_path / "empty").mkdir()
    assert run("verify", str(tmp_path / "empty"))[0] == 1


def test_what_is_no_comparison_is_refused(folder):
    with pytest.raises(Skip2BenchError, match="holds a train run; give a comparison's folder"):
        run_verify(folder / "cells" / LORA)
    (folder / "comparison_results.json").write_text("{")
    with pytest.raises(Skip2BenchError, match="cannot be read"):
        run_verify(folder)


def register(folder, registered_at="2026-01-01T00:00:00+00:00", **changes):
    """Register what the results are, or something else, and write how each cell ended."""
    results = read_comparison(find_run(folder))
    plan = RegisteredPlan(
        config=dict(results.config),
        model="pystd",
        checkpoint=None,
        data=None,
        versions={},
        machine={},
        cells=dict.fromkeys(results.cells, "key"),
        cells_follow=False,
        analysis=Analysis(
            baseline=results.baseline,
            target=describe_target(results.config["target_loss"]),
            configurations=tuple(it.name for it in results.configurations if not it.is_baseline),
            seeds=results.config["seeds"],
            learning_rate="",
            interval="",
            figures=(),
        ),
    )
    plan = plan.model_copy(update=changes)
    content = Registration(
        schema_version=1, registered_at=registered_at, sha256=hash_plan(plan), plan=plan
    )
    (folder / "registration.json").write_text(content.model_dump_json())
    return plan


def end(folder, started_at="2026-01-01T00:00:05+00:00", key="key"):
    for name, cell in read_comparison(find_run(folder)).cells.items():
        outcome = {
            "status": cell.status,
            "error": cell.error,
            "started_at": started_at,
            "wall_seconds": cell.figures.get("wall_seconds", 1.0),
            "other_cpu_cores": cell.other_cpu_cores,
        }
        path = folder / "cells" / f"{name}.json"
        path.write_text(json.dumps({"key": key, "outcome": outcome}))


def test_results_that_follow_what_was_registered(folder):
    end(folder)
    register(folder)
    # this comparison has runs that did not end well, and says so
    (deviation,) = run_verify(folder).differences
    assert (deviation.file, deviation.figure) == ("registration.json", "failed")


def test_results_that_do_not_follow_it(folder):
    end(folder, started_at="2025-12-31T00:00:00+00:00", key="other")
    plan = register(folder)
    cells = {**dict(list(plan.cells.items())[1:]), "lora-lr0.003-seed1338": "key"}
    analysis = plan.analysis.model_copy(update={"baseline": "skip2-0-1"})
    register(folder, cells=cells, analysis=analysis)
    change(folder / "registration.json", '"model":"pystd"', '"model":"other"')
    found = {it.figure: it.recomputed for it in run_verify(folder).differences}
    assert set(found) == {"hash", "left_out", "failed", "added", "another", "analysis", "late"}
    assert found["left_out"] == "lora-lr0.003-seed1338"
    assert found["added"] == next(iter(plan.cells))
    assert found["analysis"] == "baseline"
