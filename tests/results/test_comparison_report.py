"""A comparison in the report, and results files of another shape than a comparison writes."""
# ruff: noqa: E501 - a case stands in one line where it can

import json
import shutil

import pytest
from made_records import make_summary

from skip2bench.compare.peers import litgpt as peer_litgpt
from skip2bench.config.commands import ReportConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.whole import write_json
from skip2bench.report.run import render_report
from skip2bench.results.comparison_records import ComparedConfiguration
from skip2bench.results.figures import (
    CellResult,
    find_warnings,
    read_figures,
    summarise_configuration,
)
from skip2bench.results.plain import DamagedFileError
from skip2bench.results.reading import read_comparison, read_run


def make_cell(name, *, seed, seconds, loss, role="run", status="ok", **more):
    summary = {
        "initial_val_loss": 4.0,
        "final_val_loss": loss,
        "best_val_loss": loss,
        "train_seconds": seconds,
        "cache_build_seconds": min(0.5, seconds),
        "steps": 10,
        "tokens": 1000,
        "train_samples": 30,
        "global_batch_size": 16,
        "peak_memory_bytes": 2**30,
        "cache_bytes": 2**20,
        "forgetting": 0.25,
        **more,
    }
    return CellResult(
        name=f"{name}-seed{seed}{'' if role == 'run' else '-reused'}",
        configuration=name,
        role=role,
        learning_rate=1e-3,
        seed=seed,
        status=status,
        error=None if status == "ok" else "the loss is <nan> | at step 3",
        wall_seconds=seconds + 1,
        other_cpu_cores=1.0 if (name, seed) == ("lora", 2) else 0.0,
        summary=make_summary(**summary) if status == "ok" else None,
    )


KNOWN = {"schema_version": 1}
CELLS = {
    "lora": [make_cell("lora", seed=s, seconds=10.0 + s, loss=2.0 + s / 10) for s in (1, 2, 3)],
    "skip2": [
        *(make_cell("skip2", seed=s, seconds=1.0 + s / 10, loss=2.2 + s / 50) for s in (1, 2, 3)),
        *(
            make_cell("skip2", seed=s, seconds=0.2, loss=2.2, role="reused", cache_kept=True)
            for s in (1, 2, 3)
        ),
    ],
    "peer-litgpt": [make_cell("peer-litgpt", seed=1, seconds=12.0, loss=2.1)],
    "full": [make_cell("full", seed=1, seconds=1.0, loss=1.0, status="failed")],
}
LABELS = {
    "lora": "Traditional LoRA",
    "skip2": "Skip2-LoRA (8 blocks)",
    "peer-litgpt": "LitGPT finetune_lora",
    "full": "FT-All",
}


@pytest.fixture
def comparison(tmp_path):
    """A comparison's folder: three seeds, a peer with one, and a configuration that failed."""
    entries = []
    for name, cells in CELLS.items():
        entries.append(
            ComparedConfiguration.of(
                summarise_configuration(cells, CELLS["lora"], None),
                **{
                    "name": name,
                    "label": LABELS[name],
                    "method": "skip2" if name == "skip2" else "lora",
                    "rank": 4,
                    "blocks": list(range(8)) if name == "skip2" else None,
                    "target": None,
                    "peer": "litgpt" if name == "peer-litgpt" else None,
                    "is_aa": False,
                    "is_baseline": name == "lora",
                    "trainable_parameters": 24_588 if name == "skip2" else 24_576,
                    "extra_parameters": 12 if name == "skip2" else 0,
                    "differences": list(peer_litgpt.DIFFERENCES) if name == "peer-litgpt" else [],
                },
            )
        )
    results = [cell for cells in CELLS.values() for cell in cells]
    content = {
        "schema_version": 1,
        "config": {"seeds": 3, "match_params": True, "target_loss": None},
        "learning_rates": "fixed",
        "baseline": "lora",
        "configurations": entries,
        "cells": {
            cell.name: {
                "configuration": cell.configuration,
                "role": cell.role,
                "status": cell.status,
                "error": cell.error,
                "learning_rate": cell.learning_rate,
                "seed": cell.seed,
                "figures": read_figures(cell, None) if cell.status == "ok" else {},
            }
            for cell in results
        },
        "warnings": find_warnings(entries, results, n_cores=2),
    }
    folder = tmp_path / "compare" / "x"
    for cell in results:
        run_folder = folder / "cells" / cell.name
        run_folder.mkdir(parents=True)
        write_json(run_folder / "summary.json", KNOWN | {"kind": "train", "status": "ok"})
    summary = KNOWN | {
        "kind": "compare",
        "status": "failed",
        "started_at": "2026-01-01T00:00:00+00:00",
    }
    write_json(folder / "summary.json", summary)
    write_json(folder / "comparison_results.json", content)
    return folder


EXPECTED = {
    "en": (
        "| Skip2-LoRA (8 blocks) | 0-7 | 24,588 | - | -0.049 % | +12 | 4 |",
        "Each ran at one fixed learning rate",
        "**Too few runs**",
        "Something else used the processor during lora-seed2.",
        "| full-seed1 | failed | the loss is &lt;nan> \\| at step 3 |",
        "shuffles samples by its own loader",
        "Ranks were set so that each adapter method trains as many parameters",
    ),
    "ja": (
        "| Skip2-LoRA (8 blocks) | 0-7 | 24,588 | - | -0.049 % | +12 | 4 |",
        "学習率は設定ごとに 1 つの固定値で",
        "**実行回数が少ない**",
        "lora-seed2 の間、ほかのプロセスがプロセッサを使っていました",
        "| full-seed1 | failed | the loss is &lt;nan> \\| at step 3 |",
        "サンプルの並べ替えは相手のローダーによる",
        "アダプターのランクは、学習パラメータ数が基準と",
    ),
}


@pytest.mark.parametrize("lang", ["en", "ja"])
@pytest.mark.parametrize("root", ["results", "comparison"])
def test_the_report_has_the_comparison_in_it(lang, root, comparison, tmp_path):
    results = tmp_path if root == "results" else comparison
    text = render_report(ReportConfig(results=results, lang=lang))
    for words in EXPECTED[lang]:
        assert words in text
    # a cell is no run to be compared by itself
    assert "skip2bench train --method lora" not in text


def test_the_conclusion_is_written_from_the_figures(comparison):
    text = render_report(ReportConfig(results=comparison, lang="en"))
    time, memory, loss = text.splitlines()[4:7]
    assert time == (
        "- **Time.** Skip2-LoRA (8 blocks) took 1.20 s [1.10 s, 1.30 s] of training where "
        "Traditional LoRA took 12.0 s [11.0 s, 13.0 s]: -90.0 % [-90.0 %, -90.0 %]; with its cache kept "
        "from an earlier run: -98.3 % [-98.6 %, -97.9 %]."
    )
    # what does not scatter needs no word on what would have shown
    assert memory.endswith("against 1.00 GiB: no difference beyond the noise [0.0 %, 0.0 %].")
    assert loss.endswith(
        "2.2400 ± 0.0200 against 2.2000 ± 0.1000: no difference beyond the noise [-7.0 %, +11.6 %]"
        "; one of 12.7 % would have shown."
    )
    claim = "Fine-tuning time −90 % at equal trainable parameters (the paper)"
    assert f"| {claim} | Skip2-LoRA (8 blocks) | -90.0 % [-90.0 %, -90.0 %] | ✓ |" in text


EQUAL = {
    ("en", "time"): (
        "- **Equal.** All of this is at equal time",
        "## Results at equal time",
        "Training at equal time:",
        "| Configuration | Epochs | Expected ratio | Measured ratio [95 % interval] | Remark |",
        "| Traditional LoRA | 3 | 1.00 | - | baseline |",
        "| Skip2-LoRA (8 blocks) | 57 | 0.990 | 0.100 [0.100, 0.100] | - |",
    ),
    ("en", "memory"): (
        "## Results at equal memory",
        "| Configuration | Rank | Expected ratio | Measured ratio [95 % interval] | Remark |",
        "| Skip2-LoRA (8 blocks) | 1 | 1.25 | 1.00 [1.00, 1.00] | not reached: more at the least |",
    ),
    ("ja", "time"): (
        "以下は学習時間を揃えた場合の比較です",
        "## 結果サマリー（学習時間を揃えた場合）",
        "学習（学習時間を揃えた場合）:",
        "| 設定 | エポック | 予測比 | 実測比 [95 % 区間] | 備考 |",
        "| Traditional LoRA | 3 | 1.00 | - | 基準 |",
    ),
    ("ja", "memory"): (
        "## 結果サマリー（メモリを揃えた場合）",
        "| 1.25 | 1.00 [1.00, 1.00] | 未達（最小",
    ),
}


@pytest.mark.parametrize(("lang", "match"), EQUAL)
def test_a_matched_comparison_says_in_what_it_is_equal(lang, match, comparison):
    change_results(comparison, ["config", "match_params"], False)
    change_results(comparison, ["config", "match"], match)
    own = {
        "time": {"epochs": 57, "ratio": 0.99, "limit": None},
        "memory": {"rank": 1, "ratio": 1.25, "limit": "lowest"},
    }
    first = {"time": {"epochs": 3}, "memory": {"rank": 4}}[match]
    content = json.loads((comparison / "comparison_results.json").read_text())
    for number, entry in enumerate(content["configurations"]):
        if entry["name"] in ("lora", "skip2"):
            given = own[match] if entry["name"] == "skip2" else first
            given = {"ratio": 1.0, "limit": "baseline"} | given
            change_results(comparison, ["configurations", number, "matched"], given)
    text = render_report(ReportConfig(results=comparison, lang=lang))
    for words in EQUAL[lang, match]:
        assert words in text


def test_a_newer_train_run_is_reported_in_place_of_the_comparison(comparison, tmp_path):
    started_at = "2026-02-01T00:00:00+00:00"
    summary = KNOWN | {"kind": "train", "status": "ok", "started_at": started_at}
    run = tmp_path / "train" / "x"
    run.mkdir(parents=True)
    figures = {"initial_val_loss": 4.0, "final_val_loss": 3.0, "train_seconds": 1.0, "steps": 2}
    own = {"label": "Traditional LoRA", "method": "lora", "train_samples": 9}
    write_json(run / "summary.json", summary | figures | own | {"global_batch_size": 4})
    text = render_report(ReportConfig(results=tmp_path, lang="en"))
    assert "Skip2-LoRA (8 blocks)" not in text
    assert "| compare/x | compare | of another set of runs; `--run compare/x` chooses it |" in text
    chosen = render_report(ReportConfig(results=tmp_path, lang="en", run=(comparison,)))
    assert "Skip2-LoRA (8 blocks)" in chosen


def test_a_comparison_that_has_no_results_yet_stops_no_report(comparison, tmp_path):
    (comparison / "comparison_results.json").unlink()
    expected = (
        f"the comparison in {str(comparison)!r} has no comparison_results.json; call the same "
        "'skip2bench compare' again, which repeats no run that is done"
    )
    for results in (comparison, tmp_path):
        with pytest.raises(Skip2BenchError) as caught:
            render_report(ReportConfig(results=results))
        assert str(caught.value) == expected


@pytest.mark.parametrize("content", ["{", "{}", '{"configurations": []}'])
def test_a_comparison_that_cannot_be_read_is_an_error(content, comparison):
    path = comparison / "comparison_results.json"
    path.write_text(content)
    with pytest.raises(Skip2BenchError, match="'skip2bench compare' with its --out-dir writes"):
        render_report(ReportConfig(results=comparison))


def test_figures_stay_what_they_are_through_the_file(comparison):
    content = json.loads((comparison / "comparison_results.json").read_text())
    skip2 = next(e for e in content["configurations"] if e["name"] == "skip2")
    reused = skip2["figures"]["reused_train_seconds"]
    assert (reused["n"], reused["median"], reused["std"]) == (3, 0.2, 0.0)
    assert skip2["against_baseline"]["reused_train_seconds"]["n"] == 3


def change_results(comparison, keys, value):
    """Set, or with ... remove, what the keys lead to in the results file."""
    path = comparison / "comparison_results.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    place = content
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (["schema_version"], 2, "it was written by a newer skip2bench (schema_version 2, this one reads 1)"),
        (["configurations"], [], "it has no configurations yet"),
        (["configurations"], {}, "configurations is a mapping, where a list was expected"),
        (["configurations", 0], "lora", "configurations[0] is 'lora', where a mapping was expected"),
        (["configurations", 0, "label"], ..., "configurations[0].label is missing"),
        (["configurations", 0, "label"], None, "configurations[0].label is missing"),
        (["configurations", 0, "label"], 5, "configurations[0].label is 5, where text was expected"),
        (["configurations", 0, "blocks"], ..., "configurations[0].blocks is missing"),
        (["configurations", 0, "blocks"], "all", "configurations[0].blocks is not a list of whole numbers"),
        (["configurations", 0, "seeds"], 3, "configurations[0].seeds is not a list of whole numbers"),
        (["configurations", 0, "is_aa"], "no", "configurations[0].is_aa is 'no', where true or false was expected"),
        (["configurations", 0, "rank"], True, "configurations[0].rank is True, where a whole number was expected"),
        (["configurations", 0, "learning_rate"], "1e-3", "configurations[0].learning_rate is '1e-3', where a number was expected"),
        (["configurations", 0, "grid", 0, "ok"], None, "configurations[0].grid[0].ok is missing"),
        (["configurations", 0, "figures"], [1], "configurations[0].figures is a list, where a mapping was expected"),
        (["configurations", 0, "figures", "train_seconds"], 5.0, "configurations[0].figures.train_seconds is 5.0, where a mapping was expected"),
        (["configurations", 0, "figures", "train_seconds", "mean"], -5, "configurations[0].figures.train_seconds.mean is -5, where a number of a sensible size was expected"),
        (["configurations", 0, "figures", "train_seconds", "std"], ..., "configurations[0].figures.train_seconds.std is missing, where a number of a sensible size was expected"),
        (["configurations", 0, "figures", "train_seconds"], ..., "configurations[0].figures.train_seconds is missing"),
        (["configurations", 1, "against_baseline", "train_seconds", "ratio"], None, "configurations[1].against_baseline.train_seconds is no ratio of a figure"),
        (["configurations", 1, "against_baseline", "train_seconds", "low"], None, "configurations[1].against_baseline.train_seconds has half an interval"),
        (["configurations", 1, "against_baseline", "train_seconds", "high"], "1", "configurations[1].against_baseline.train_seconds.high is '1', where a number was expected"),
        (["configurations", 1, "name"], "lora", "two configurations share a name, or are both the baseline"),
        (["configurations", 1, "is_baseline"], True, "two configurations share a name, or are both the baseline"),
        (["cells", "../../x"], {}, "the cell '../../x' is not named as a folder can be"),
        (["cells", ".."], {}, "the cell '..' is not named as a folder can be"),
        (["cells", "a\\b"], {}, "the cell 'a\\\\b' is not named as a folder can be"),
        (["cells", "lora-seed1"], 5, "cells.'lora-seed1' is 5, where a mapping was expected"),
        (["cells", "lora-seed1", "status"], ..., "cells.'lora-seed1'.status is missing"),
        (["cells", "lora-seed1", "figures"], ..., "cells.'lora-seed1'.figures is missing, where a mapping was expected"),
        (["cells", "lora-seed1", "figures", "train_seconds"], "1", "cells.'lora-seed1'.figures.train_seconds is '1', where a number was expected"),
        (["config"], None, "config is missing, where a mapping was expected"),
        (["config", "target_loss"], "low", "config.target_loss is 'low', where a number was expected"),
        (["config", "match"], "speed", "config.match is 'speed', where one of params, memory, time was expected"),
        (["warnings"], "busy", "warnings is 'busy', where a list was expected"),
        (["warnings", 0], "busy", "warnings[0] is 'busy', where a mapping was expected"),
    ],
)  # fmt: skip
def test_results_of_another_shape_have_an_exact_reason(keys, value, reason, comparison):
    change_results(comparison, keys, value)
    with pytest.raises(DamagedFileError) as caught:
        read_comparison(read_run(comparison))
    assert str(caught.value) == f"comparison_results.json: {reason}"


def test_an_older_comparison_is_reported_where_the_newest_is_damaged(comparison, tmp_path):
    newer = tmp_path / "compare" / "y"
    shutil.copytree(comparison, newer)
    summary = json.loads((newer / "summary.json").read_text())
    started_at = "2026-03-01T00:00:00+00:00"
    (newer / "summary.json").write_text(json.dumps(summary | {"started_at": started_at}))
    text = (newer / "comparison_results.json").read_text()
    (newer / "comparison_results.json").write_text(text[: len(text) // 2])
    report = render_report(ReportConfig(results=tmp_path, lang="en"))
    assert "| Skip2-LoRA (8 blocks) | 3 |" in report
    assert "| compare/y | - | cannot be read: comparison_results.json is no JSON: " in report


def test_a_cell_that_is_damaged_is_named_and_the_others_drawn(comparison, tmp_path):
    cells = comparison / "cells"
    header = "step,train_seconds,train_loss,val_loss\n"
    for name, row in (("skip2-seed1", "0,0,1,1\n"), ("skip2-seed2", "0,0,1,nan\n")):
        (cells / name / "logs/version_0").mkdir(parents=True)
        (cells / name / "logs/version_0/metrics.csv").write_text(header + row)
    (cells / "lora-seed1/summary.json").write_text("{")
    text = render_report(ReportConfig(results=tmp_path, lang="en"))
    reason = "metrics.csv: row 1: val_loss is 'nan', where a number was expected"
    assert f"| compare/x/cells/skip2-seed2 | - | cannot be read: {reason} |" in text
    assert "| compare/x/cells/lora-seed1 | - | cannot be read: summary.json is no JSON: " in text
    assert "losses.en.svg" in text
    assert "| Traditional LoRA | 3 |" in text
