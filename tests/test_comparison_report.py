import json

import pytest

from skip2bench import peer_litgpt
from skip2bench.comparison import CellResult, find_warnings, read_figures, summarise_configuration
from skip2bench.config import ReportConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.report import render_report
from skip2bench.results import write_json


def make_cell(name, *, seed, seconds, loss, role="run", status="ok", **more):
    summary = {
        "initial_val_loss": 4.0,
        "final_val_loss": loss,
        "best_val_loss": loss,
        "train_seconds": seconds,
        "cache_build_seconds": 0.5,
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
        summary=summary if status == "ok" else {},
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
            {
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
                **summarise_configuration(cells, CELLS["lora"], None),
            }
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
        "| Skip2-LoRA (8 blocks) | 24,588 | - | -0.049 % | +12 | 4 |",
        "All ran at one fixed learning rate",
        "**Too few runs**",
        "Something else used the processor during lora-seed2.",
        "| full-seed1 | failed | the loss is &lt;nan> \\| at step 3 |",
        "shuffles samples by its own loader",
        "Ranks were set so that each adapter method trains as many parameters",
    ),
    "ja": (
        "| Skip2-LoRA (8 blocks) | 24,588 | - | -0.049 % | +12 | 4 |",
        "学習率は共通の固定値で",
        "**実行回数が少ない**",
        "lora-seed2 の間、ほかのプロセスがプロセッサーを使っていました",
        "| full-seed1 | failed | the loss is &lt;nan> \\| at step 3 |",
        "サンプルの並べ替えは相手のローダーによる",
        "アダプターのランクは、学習可能パラメータ数が基準と",
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
    time, memory, loss = text.splitlines()[2:5]
    assert time == (
        "- **Time.** Skip2-LoRA (8 blocks) took 1.20 s ± 0.100 s of training where Traditional "
        "LoRA took 12.0 s ± 1.00 s: -90.0 % [-90.0 %, -90.0 %], and -98.3 % [-98.6 %, -97.9 %] "
        "with its cache kept from an earlier run."
    )
    assert memory.endswith("against 1.00 GiB: no difference beyond the noise [0.0 %, 0.0 %].")
    assert loss.endswith(
        "2.2400 ± 0.0200 against 2.2000 ± 0.1000: no difference beyond the noise [-7.0 %, +11.6 %]."
    )
    claim = "Fine-tuning time −90 % at equal trainable parameters (the paper)"
    assert f"| {claim} | Skip2-LoRA (8 blocks) | -90.0 % [-90.0 %, -90.0 %] | ✓ |" in text


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
    with pytest.raises(Skip2BenchError, match="no finished run below"):
        render_report(ReportConfig(results=comparison))


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
