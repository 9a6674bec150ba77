import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from tiny import as_written

from skip2bench.compare.folder import CompareFolder
from skip2bench.compare.run import run_comparison
from skip2bench.config.compare import load_compare_config
from skip2bench.errors import Skip2BenchError
from skip2bench.results.reading import read_run


@pytest.fixture
def settings(tiny_checkpoint, tiny_data):
    """Values of `train` that make a run of a second."""
    return {
        "checkpoint_dir": str(tiny_checkpoint),
        "data": str(tiny_data),
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "max_steps": 6,
        "eval_interval": 3,
        "lr_warmup_steps": 1,
        "lora_dropout": 0.0,
        "device": "cpu",
        "bench": False,
        "seeds": 1,
    }


@pytest.fixture
def reads(monkeypatch):
    """How often this process has opened each file of a cell's run, by cell and file."""
    found: Counter[tuple[str, str]] = Counter()
    open_file = Path.open

    def count(path, mode="r", *args, **options):
        if path.name in ("summary.json", "metrics.csv") and "cells" in path.parts and "r" in mode:
            found[path.parts[path.parts.index("cells") + 1], path.name] += 1
        return open_file(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", count)
    return found


def stamps(folder: Path) -> dict[str, int]:
    """When each cell's end was recorded."""
    return {path.stem: path.stat().st_mtime_ns for path in folder.glob("cells/*[0-9d].json")}


def test_a_matrix_with_cells_that_cannot_end_well(settings, tmp_path, capsys, reads):
    """One diverges, one is out of memory, all others end well, are read once and not repeated."""
    matrix = {
        "learning_rates": [1e-2],
        "configurations": [
            {"method": "lora"},
            {"method": "lora", "label": "diverges", "learning_rates": [1e30]},
            {"method": "last", "max_memory": "100MiB"},
            {"method": "skip2", "blocks": [0, 1]},
        ],
    }
    folder = tmp_path / "out"
    config = load_compare_config(settings | matrix | {"out_dir": folder})
    results = as_written(run_comparison(config, ["compare"]))
    statuses = {name: cell["status"] for name, cell in results["cells"].items()}
    assert statuses == {
        "cache-1": "ok",
        "lora-lr0.01-seed1337": "ok",
        "lora-2-lr1e+30-seed1337": "failed",
        "last-lr0.01-seed1337": "oom",
        "skip2-0-1-lr0.01-seed1337": "ok",
        "skip2-0-1-lr0.01-seed1337-reused": "ok",
    }
    ended_well = [name for name, status in statuses.items() if status == "ok" and name != "cache-1"]
    files = [(name, file) for name in ended_well for file in ("summary.json", "metrics.csv")]
    assert {place: reads[place] for place in files} == dict.fromkeys(files, 1)
    assert set(reads.values()) == {1}
    assert results["error"].startswith("2 of 6 runs did not end well: lora-2-lr1e+30-seed1337, l")
    assert "lower --learning-rate" in results["cells"]["lora-2-lr1e+30-seed1337"]["error"]
    assert read_run(folder).summary.status == "failed"

    written = json.loads((folder / "comparison_results.json").read_text())
    assert written["statuses"] == {"failed": 1, "ok": 4, "oom": 1}
    lora, diverges, last, skip2 = written["configurations"]
    assert lora["is_baseline"]
    assert lora["figures"]["final_val_loss"]["n"] == skip2["figures"]["final_val_loss"]["n"] == 1
    assert diverges["figures"] == last["figures"] == {}
    assert lora["target_reached"] == 1
    # the same run, whether its cache was built inside it or found
    cells = written["cells"]
    built = cells["skip2-0-1-lr0.01-seed1337"]["figures"]["final_val_loss"]
    reused = cells["skip2-0-1-lr0.01-seed1337-reused"]["figures"]["final_val_loss"]
    assert built == pytest.approx(reused, abs=1e-6)
    assert skip2["figures"]["reused_train_seconds"]["n"] == 1
    assert read_run(folder / "cells/skip2-0-1-lr0.01-seed1337-reused").summary.cache_kept

    table = pd.read_csv(folder / "comparison.csv")
    assert table["status"].value_counts().to_dict() == {"ok": 4, "failed": 1, "oom": 1}
    ok = table[table["status"] == "ok"]
    assert ok["tokens_per_second"].notna().all()
    assert (folder / "cells/last-lr0.01-seed1337.log").read_text().strip()
    assert not (folder / "cache").exists()

    before = stamps(folder)
    capsys.readouterr()
    reads.clear()
    run_comparison(config, ["compare"])
    assert {place: reads[place] for place in files} == dict.fromkeys(files, 1)
    assert set(reads.values()) == {1}
    after = stamps(folder)
    repeated = {name for name in before if before[name] != after[name]}
    assert repeated == {"lora-2-lr1e+30-seed1337", "last-lr0.01-seed1337"}
    assert "4 of 6 are done already" in capsys.readouterr().err

    # what is there is not replaced by runs of something else unless that was asked for
    other = load_compare_config(settings | matrix | {"out_dir": folder, "max_steps": 5})
    with pytest.raises(Skip2BenchError, match="holds 4 runs of another configuration, machine or"):
        run_comparison(other, ["compare"])
    assert stamps(folder) == after


def test_a_search_of_rates_goes_on_where_it_was(settings, tmp_path, capsys, monkeypatch):
    """What diverged is an answer, not an error; a lost cell of the search alone runs again."""
    first = (1e-2, 3e-3, 1e30)
    monkeypatch.setattr("skip2bench.compare.matrix.first_rates", lambda middle: first)
    matrix = {"methods": "lora", "learning_rates": "auto", "seeds": 2, "max_steps": 2}
    folder = tmp_path / "out"
    config = load_compare_config(settings | matrix | {"out_dir": folder})
    results = as_written(run_comparison(config, ["compare"]))
    assert results["error"] is None
    (lora,) = results["configurations"]
    rates = {cell["learning_rate"] for cell in results["cells"].values() if cell["seed"] == 1337}
    assert not lora["learning_rate_at_edge"] or len(rates) == 7
    assert lora["failed"] == ["lora-lr1e+30-seed1337"]
    assert read_run(folder).summary.runs == len(results["cells"]) == len(rates) + 1
    assert {row["learning_rate"]: row["runs"] for row in lora["grid"]} == dict.fromkeys(rates, 1)
    others = [cell for cell in results["cells"].values() if cell["seed"] == 1338]
    assert [cell["learning_rate"] for cell in others] == [lora["learning_rate"]]
    assert results["rate_search"] == {"seed": 1337, "is_reported": True}
    assert lora["seeds"] == [1337, 1338]
    assert "learning rates are searched for with the first seed" in capsys.readouterr().err

    before = stamps(folder)
    lost = "lora-lr0.003-seed1337"
    (folder / "cells" / f"{lost}.json").unlink()
    again = as_written(run_comparison(config, ["compare"]))
    after = stamps(folder)
    assert {name for name in after if after[name] != before[name]} == {lost}
    assert again["configurations"][0]["learning_rate"] == lora["learning_rate"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_comparison_that_was_stopped_goes_on(settings, tmp_path, number):
    """Its running cell ends too, and the next call repeats no cell that had ended."""
    matrix = {"methods": "lora,last", "learning_rates": [1e-2], "max_steps": 80}
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump(settings | matrix))
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "skip2bench", "compare", "--config", str(path)]
    command += ["--out-dir", str(folder)]
    with (tmp_path / "stopped.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        second = folder / "cells/last-lr0.01-seed1337.spec.json"
        wait_for(second.exists)
        wait_for((folder / "cells/last-lr0.01-seed1337/summary.json").exists)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        os.kill(process.pid, number)
        process.wait()
    assert process.returncode != 0
    wait_for(lambda: not any(child.is_running() for child in children))
    assert len(stamps(folder)) == (1 if number == signal.SIGKILL else 2)
    if number != signal.SIGKILL:
        assert read_run(folder).summary.status == "interrupted"
        outcome = json.loads((folder / "cells/last-lr0.01-seed1337.json").read_text())["outcome"]
        assert outcome["status"] == "interrupted"

    before = stamps(folder)["lora-lr0.01-seed1337"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert stamps(folder)["lora-lr0.01-seed1337"] == before
    assert "1 of 2 are done already" in done.stderr
    results = json.loads(done.stdout)
    assert {cell["status"] for cell in results["cells"].values()} == {"ok"}
    assert read_run(folder).summary.status == "ok"


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_dry_run_writes_nothing(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = load_compare_config(settings | {"methods": "lora,skip", "dry_run": True})
    result = run_comparison(config, ["compare"])
    assert result.cells[0] == "lora-lr0.001-seed1337"
    assert result.estimated_seconds > 0
    assert not list(tmp_path.iterdir())
    err = capsys.readouterr().err
    assert "Traditional LoRA: " in err
    assert "1 seed each, on tiny and tiny.json: about" in err


def test_nothing_is_written_before_the_input_is_known_to_be_good(settings, tmp_path):
    folder = tmp_path / "out"
    config = load_compare_config(
        settings | {"methods": "lora,skip2", "blocks": ["0,9"], "out_dir": folder}
    )
    with pytest.raises(Skip2BenchError, match="block 9 does not exist"):
        run_comparison(config, ["compare"])
    assert not folder.exists()


def test_two_comparisons_do_not_work_in_one_folder(tmp_path):
    tmp_path.joinpath("out").mkdir()
    folder = CompareFolder(tmp_path / "out")
    with (
        folder.locked(),
        pytest.raises(Skip2BenchError, match=f"process {os.getpid()} is working in"),
        CompareFolder(tmp_path / "out").locked(),
    ):
        pass


def test_a_seed_more_finds_the_cache_kept_though_the_comparison_had_ended(settings, tmp_path):
    own = {"methods": "skip2", "baseline": "skip2", "blocks": ["0"], "learning_rates": [1e-2]}
    own["out_dir"] = tmp_path / "out"
    first = load_compare_config(settings | own)
    run_comparison(first, ["compare"])
    before = stamps(tmp_path / "out")["skip2-0-lr0.01-seed1337-reused"]
    assert not (tmp_path / "out" / "cache").exists()
    results = run_comparison(load_compare_config(settings | own | {"seeds": 2}), ["compare"])
    assert results.statuses == {"ok": 5}
    cells = tmp_path / "out" / "cells"
    assert read_run(cells / "skip2-0-lr0.01-seed1338-reused").summary.cache_kept
    assert stamps(tmp_path / "out")["skip2-0-lr0.01-seed1337-reused"] == before
