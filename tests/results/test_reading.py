"""Run folders read back: which are found, and the exact reason for each that cannot be trusted."""
# ruff: noqa: E501 - a case stands in one line where it can

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from skip2bench.config.commands import ReportConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.whole import write_json
from skip2bench.report.run import render_report
from skip2bench.results.plain import DamagedFileError
from skip2bench.results.reading import is_tune, read_run, read_runs, read_tune

DATA = Path(__file__).parents[1] / "data" / "results"
TRAIN = DATA / "train" / "20261123T101300Z-pystd-skip2-0-1-2-3"
BENCH = DATA / "bench" / "20261123T100000Z-pystd-bench"
TUNED = Path(__file__).parents[1] / "data" / "tuned"
KNOWN = {"schema_version": 1, "kind": "train", "status": "ok"}


def make_run(folder: Path, started_at: str = "2026-01-01T00:00:00+00:00") -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "summary.json", KNOWN | {"started_at": started_at})
    return folder


def find_reason(folder: Path) -> str:
    runs, unreadable = read_runs(folder.parent)
    assert runs == []
    assert list(unreadable) == [folder]
    with pytest.raises(Skip2BenchError) as caught:
        read_run(folder)
    reason = unreadable[folder]
    assert "\n" not in reason
    assert str(caught.value) == (
        f"the run in {str(folder)!r} cannot be read ({reason}); move it away"
    )
    return reason


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TRAIN, tmp_path / "run"))


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BENCH, tmp_path / "run"))


NEWER = "it was written by a newer skip2bench (schema_version 2, this one reads 1)"
OLDER = "it was written by an older skip2bench (schema_version 0, this one reads 1)"
ONE_WORD = "none of running, ok, oom, failed, interrupted"
HUGE = 10**60


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema_version": 2}, NEWER),
        ({"schema_version": 0}, OLDER),
        ({"schema_version": None}, "it has no schema_version, so it is not skip2bench's"),
        ({"schema_version": "1"}, "schema_version is '1', where a whole number was expected"),
        ({"schema_version": True}, "schema_version is True, where a whole number was expected"),
        ({"schema_version": 1.0}, "schema_version is 1.0, where a whole number was expected"),
        ({"kind": "merge"}, "kind is 'merge', none of bench, train, compare, tune"),
        ({"kind": None}, "kind is missing, none of bench, train, compare, tune"),
        ({"kind": ["train"]}, "kind is a list, none of bench, train, compare, tune"),
        ({"status": "done"}, f"status is 'done', {ONE_WORD}"),
        ({"status": None}, f"status is missing, {ONE_WORD}"),
        (
            {"train_seconds": "3 min"},
            "train_seconds is '3 min', where a number of seconds was expected",
        ),
        ({"train_seconds": -1.5}, "train_seconds is -1.5, where a number of seconds was expected"),
        ({"train_seconds": True}, "train_seconds is True, where a number of seconds was expected"),
        ({"train_seconds": [1]}, "train_seconds is a list, where a number of seconds was expected"),
        (
            {"train_seconds": {"mean": 1}},
            "train_seconds is a mapping, where a number of seconds was expected",
        ),
        (
            {"train_seconds": 1e300},
            "train_seconds is 1e+300, where a number of seconds was expected",
        ),
        (
            {"train_seconds": 1e-300},
            "train_seconds is 1e-300, where a number of seconds was expected",
        ),
        (
            {"train_seconds": HUGE},
            "train_seconds is an enormous number, where a number of seconds was expected",
        ),
        ({"train_minutes": 3}, "train_minutes is in another unit than the seconds of result files"),
        ({"cache_mib": 3}, "cache_mib is in another unit than the bytes of result files"),
        (
            {"peak_memory_bytes": -1},
            "peak_memory_bytes is -1, where a whole number of bytes was expected",
        ),
        (
            {"peak_memory_bytes": 1.5},
            "peak_memory_bytes is 1.5, where a whole number of bytes was expected",
        ),
        ({"final_val_loss": "low"}, "final_val_loss is 'low', where a loss was expected"),
        ({"final_val_loss": -2}, "final_val_loss is -2, where a loss was expected"),
        ({"steps": 2.5}, "steps is 2.5, where a whole number was expected"),
        ({"steps": 0}, "steps is 0, yet the run says that it ended well"),
        ({"train_seconds": 0, "cache_build_seconds": 0}, "train_seconds is 0, yet the run says that it ended well"),
        ({"seed": "one"}, "seed is 'one', where a whole number was expected"),
        ({"global_batch_size": 0}, "global_batch_size is 0, where a whole number from 1 was expected"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', where a number from 0 was expected"),
        ({"forgetting": "much"}, "forgetting is 'much', where a number of a sensible size was expected"),
        ({"anything": 1e300}, "anything is 1e+300, where a number of a sensible size was expected"),
        ({"blocks": 5}, "blocks is not a list of whole numbers"),
        ({"blocks": [0, "1"]}, "blocks is not a list of whole numbers"),
        ({"differences": "all"}, "differences is not a list of texts"),
        ({"label": {"a": 1}}, "label is a mapping, where text was expected"),
        ({"error": 5}, "error is 5, where text was expected"),
        ({"started_at": "today"}, "started_at is 'today', where a time with zone was expected"),
        (
            {"started_at": "2026-01-01T00:00:00"},
            "started_at is '2026-01-01T00:00:00', where a time with zone was expected",
        ),
        (
            {"started_at": "0001-01-01T00:00:00+23:00"},
            "started_at is '0001-01-01T00:00:00+23:00', where a time with zone was expected",
        ),
        ({"log_folder": "../x"}, "log_folder '../x' leads out of the run folder"),
        ({"log_folder": "logs/../../x"}, "log_folder 'logs/../../x' leads out of the run folder"),
        ({"log_folder": "/etc"}, "log_folder '/etc' leads out of the run folder"),
        ({"log_folder": "C:\\x"}, "log_folder 'C:\\\\x' leads out of the run folder"),
        ({"log_folder": "a\0b"}, "log_folder 'a\\x00b' leads out of the run folder"),
        (
            {"trainable_parameters": 5_000_000},
            "trainable_parameters is 5000000, more than the total_parameters of 4353216",
        ),
        (
            {"cache_build_seconds": 50.0},
            "cache_build_seconds is 50.0, more than the train_seconds of 31.62",
        ),
        ({"algebra_costs": {"head": {"flops": [1e200]}}}, "algebra_costs.head.flops[0] is 1e+200, where a number of a sensible size was expected"),
        ({"label": "\u202egpj", "error": 1}, "error is 1, where text was expected"),
        ({"a\nb": 10**31}, "a\\nb is 10000000000000000000000000000000, where a number of a sensible size was expected"),
    ],
)  # fmt: skip
def test_a_summary_that_cannot_be_trusted(change: dict[str, Any], reason: str, train: Path) -> None:
    content = json.loads((train / "summary.json").read_text(encoding="utf-8")) | change
    (train / "summary.json").write_text(json.dumps(content), encoding="utf-8")
    assert find_reason(train) == f"summary.json: {reason}"


@pytest.mark.parametrize("name", ["train_seconds", "peak_memory_bytes", "label", "blocks", "seed"])
def test_a_figure_that_is_missing_is_none(name: str, train: Path) -> None:
    content = json.loads((train / "summary.json").read_text(encoding="utf-8"))
    for change in ({name: None}, None):
        content = content | change if change else {k: v for k, v in content.items() if k != name}
        (train / "summary.json").write_text(json.dumps(content), encoding="utf-8")
        assert getattr(read_run(train).summary, name) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"configurations": {}}, None),  # none yet
        ({"configurations": {"a": 1}}, "configurations is a mapping, where a list was expected"),
        ({"configurations": ["a"]}, "configurations[0] is 'a', where a mapping was expected"),
        (
            {"configurations": [{"status": "huge"}]},
            f"configurations[0].status is 'huge', {ONE_WORD}",
        ),
        (
            {"configurations": [{"status": "oom", "requested_bytes": "2 GiB"}]},
            "configurations[0].requested_bytes is '2 GiB', where a whole number of bytes was expected",
        ),
        (
            {"configurations": [{"memory": {"phases": {"forward": 1}}}]},
            "configurations[0].memory.phases.forward is 1, where a mapping was expected",
        ),
        (
            {"configurations": [{"memory": {"phases": [1]}}]},
            "configurations[0].memory.phases is a list, where a mapping was expected",
        ),
        (
            {"configurations": [{"phases": [1]}]},
            "configurations[0].phases is a list, where a mapping was expected",
        ),
        (
            {"configurations": [{"phases": {"forward": 1.5}}]},
            "configurations[0].phases.forward is 1.5, where a mapping was expected",
        ),
        (
            {"configurations": [{"phases": {"forward": {"median_seconds": "1 s"}}}]},
            "configurations[0].phases.forward.median_seconds is '1 s', where a number of seconds "
            "was expected",
        ),
        (
            {"configurations": [{"phases": {"forward": {"median_ms": 2}}}]},
            "configurations[0].phases.forward.median_ms is in another unit than the seconds of "
            "result files",
        ),
        (
            {"configurations": [{"ratios": {"backward": {"ratio": -1}}}]},
            "configurations[0].ratios.backward.ratio is -1, where a ratio was expected",
        ),
        (
            {"configurations": [{"total_parameters": 1, "trainable_parameters": 2}]},
            "configurations[0].trainable_parameters is 2, more than the total_parameters of 1",
        ),
        (
            {"configurations": [{"memory": "much"}]},
            "configurations[0].memory is 'much', where a mapping was expected",
        ),
    ],
)
def test_a_benchmark_that_cannot_be_trusted(
    change: dict[str, Any], reason: str | None, bench: Path
) -> None:
    content = json.loads((bench / "summary.json").read_text(encoding="utf-8")) | change
    (bench / "summary.json").write_text(json.dumps(content), encoding="utf-8")
    if reason is None:
        assert read_run(bench).summary
    else:
        assert find_reason(bench) == f"summary.json: {reason}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "summary.json is empty"),
        (b" \n", "summary.json is empty"),
        (b"{", "summary.json is no JSON: Expecting property name enclosed in double quotes (line 1)"),
        (b'{"kind": "train",\n "st', "summary.json is no JSON: Unterminated string starting at (line 2)"),
        (b"[1]", "summary.json: it is a list, where a mapping was expected"),
        (b"null", "summary.json: it is missing, where a mapping was expected"),
        (b'{"train_seconds": NaN}', "summary.json holds NaN, which is no number"),
        (b'{"train_seconds": -Infinity}', "summary.json holds -Infinity, which is no number"),
        (b'{"a": [1e999]}', "summary.json: a[0] is inf, no finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "summary.json holds an enormous number"),
        (b'{"a": "\\ud800"}', "summary.json holds half of a surrogate pair"),
        (b'{"\\ud800": 1}', "summary.json holds half of a surrogate pair"),
        (b"[" * 100_000, "summary.json is nested too deeply"),
        (b"[" * 60 + b"]" * 60, "summary.json is nested too deeply"),
        (b"\xff\xfe{}", "summary.json is not in UTF-8 (invalid start byte at byte 0)"),
        (b'{"a": "\0"}', "summary.json is no JSON: Invalid control character at (line 1)"),
    ],
)  # fmt: skip
def test_a_summary_that_is_no_json(content: bytes, reason: str, train: Path) -> None:
    (train / "summary.json").write_bytes(content)
    assert find_reason(train) == reason


def test_a_byte_order_mark_and_other_line_ends_do_no_harm(train: Path) -> None:
    for name in ("summary.json", "environment.json", "config.yaml"):
        text = (train / name).read_text(encoding="utf-8")
        (train / name).write_text(
            "\ufeff" + text.replace("\n", "\r\n"), encoding="utf-8", newline=""
        )
    read = read_run(train)
    original = read_run(TRAIN)
    assert (read.summary, read.environment, read.config) == (
        original.summary,
        original.environment,
        original.config,
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: !!python/object/apply:os.system ['touch pwned']", "config.yaml is no plain YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system' (line 1)"),
        ("a: !!python/name:os.system", "config.yaml is no plain YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/name:os.system' (line 1)"),
        ("- a", "config.yaml: it is a list, where a mapping was expected"),
        ("a: [", "config.yaml is no plain YAML: did not find expected node content (line 2)"),
        ("a: .nan", "config.yaml: a is nan, no finite number"),
        ("a: {b: 2026-01-01}", "config.yaml: a.b is a date, where text or a number belongs"),
        ("a: 2026-99-99", "config.yaml holds a value that cannot be read"),
        ("a: !!binary aGk=", "config.yaml: a is no plain value"),
        ("1: 2", "config.yaml: 1 is no text, as a key must be"),
        ("a: \0", "config.yaml holds characters that YAML does not allow"),
        ("a: &a {b: 1}\nc:\n  <<: *a", "config.yaml has merge keys, which result files do not have"),
        ("a: &a [*a]", "config.yaml is nested too deeply"),
        ("[" * 100_000, "config.yaml is nested too deeply"),
        ("- " * 100_000, "config.yaml is nested too deeply"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in ("ab", "bc", "cd", "de", "ef", "fg")),
            "config.yaml stands for more than 100,000 values",
        ),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_trusted(
    content: str, reason: str, train: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (train / "config.yaml").write_text(content, encoding="utf-8")
    assert find_reason(train) == reason
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cpu_count": "two"}, "cpu_count is 'two', where a whole number from 1 was expected"),
        ({"cpu_count": 0}, "cpu_count is 0, where a whole number from 1 was expected"),
        ({"memory_bytes": "2 GB"}, "memory_bytes is '2 GB', where a whole number of bytes was expected"),
        ({"load_average": "busy"}, "load_average is 'busy', where numbers were expected"),
        ({"load_average": []}, "load_average is a list, where numbers were expected"),
        ({"gpu": "H100"}, "gpu is 'H100', where a mapping was expected"),
        ({"data": ["x"]}, "data is a list, where a mapping was expected"),
        ({"data": {"samples": "all"}}, "data.samples is 'all', where a whole number was expected"),
        ({"command": ["rm"]}, "command is a list, where text was expected"),
    ],
)  # fmt: skip
def test_an_environment_that_cannot_be_trusted(
    change: dict[str, Any], reason: str, train: Path
) -> None:
    content = json.loads((train / "environment.json").read_text(encoding="utf-8")) | change
    (train / "environment.json").write_text(json.dumps(content), encoding="utf-8")
    assert find_reason(train) == f"environment.json: {reason}"


@pytest.mark.parametrize("name", ["summary.json", "environment.json", "config.yaml"])
def test_what_stands_where_a_file_should(name: str, train: Path) -> None:
    (train / name).unlink()
    (train / name).mkdir()
    assert find_reason(train) == f"{name} is a folder, where a file was expected"
    (train / name).rmdir()
    (train / name).symlink_to("nowhere")
    assert find_reason(train) == f"{name} is a link to nothing, or missing"
    (train / name).unlink()
    (train / name).symlink_to(name)
    assert find_reason(train) == f"{name} is a link to nothing, or missing"
    (train / name).unlink()
    os.mkfifo(train / name)  # opening it would wait for ever
    assert find_reason(train) == f"{name} is no regular file"


def test_a_file_that_may_not_be_read_says_so(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == "environment.json":
            raise PermissionError(13, "Permission denied")
        return original(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything, so no mode will do
    assert find_reason(train) == "environment.json cannot be opened: Permission denied"


def test_a_file_of_any_size_is_not_read_to_its_end(
    train: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skip2bench.results.plain.MAX_BYTES", 2**20)
    (train / "config.yaml").write_bytes(b" " * (2**20 + 1))
    assert find_reason(train) == "config.yaml is larger than 1 MiB"


def test_an_error_quotes_nothing_of_a_file_that_a_link_leads_to(
    train: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("root:$6$hash: {\n")
    (train / "config.yaml").unlink()
    (train / "config.yaml").symlink_to(tmp_path / "secret")
    assert "hash" not in find_reason(train)


def test_runs_are_found_at_any_of_three_levels_oldest_first(tmp_path: Path) -> None:
    make_run(tmp_path / "train" / "b", "2026-01-02T00:00:00+00:00")
    # the same evening, by another zone's clock
    make_run(tmp_path / "train" / "a", "2026-01-01T20:00:00-08:00")
    make_run(tmp_path / "alone", "2026-01-01T00:00:00+00:00")
    make_run(tmp_path / "compare" / "c" / "bench", "2026-01-04T00:00:00+00:00")
    make_run(tmp_path / "reference" / "gpu")
    names = [run.folder.name for run in read_runs(tmp_path)[0]]
    assert names == ["alone", "b", "a", "bench"]
    assert [run.folder.name for run in read_runs(tmp_path / "reference")[0]] == ["gpu"]
    assert [run.folder.name for run in read_runs(tmp_path / "alone")[0]] == ["alone"]


def test_no_results_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("none", "file"):
        with pytest.raises(Skip2BenchError, match="does not exist; run 'skip2bench bench' first"):
            read_runs(tmp_path / name)


def test_a_folder_that_may_not_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "train" / "a")
    (tmp_path / "closed").mkdir()
    original = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    runs, unreadable = read_runs(tmp_path)
    assert [run.folder.name for run in runs] == ["a"]
    reason = "the folder cannot be listed: Permission denied"
    assert unreadable == {tmp_path / "closed": reason}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Skip2BenchError) as caught:
        read_runs(Path("closed"))
    assert str(caught.value) == (
        f"the results in 'closed' cannot be read ({reason}); mend that, or choose another folder "
        "with --results"
    )


def test_a_run_that_links_lead_to_counts_once_where_it_lies(tmp_path: Path) -> None:
    results = tmp_path / "results"
    make_run(results / "train" / "real")
    (results / "train" / "a-link").symlink_to(results / "train" / "real")
    (results / "all").symlink_to(results / "train")
    (results / "loop").symlink_to(results)
    (results / "self").symlink_to(results / "self")
    (results / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(results)
    make_run(tmp_path / "elsewhere")
    (results / "train" / "other").symlink_to(tmp_path / "elsewhere")
    for root in (results, tmp_path / "link"):
        runs, unreadable = read_runs(root)
        found = sorted(run.folder.relative_to(root).as_posix() for run in runs)
        assert found == ["all/other", "train/real"]
        assert unreadable == {}


def test_the_others_are_reported_and_the_damaged_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(DATA, tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    folder = Path("results/train") / TRAIN.name
    (folder / "summary.json").write_text('{"schema_version": 2}')
    text = render_report(ReportConfig(lang="en"))
    assert f"| train/{folder.name} | - | cannot be read: summary.json: {NEWER} |" in text
    assert "| Skip2-LoRA (6 blocks) | 1 |" in text
    with pytest.raises(Skip2BenchError) as caught:
        render_report(ReportConfig(run=(folder,)))
    assert str(caught.value) == (
        f"the run in {str(folder)!r} cannot be read (summary.json: {NEWER}); choose another with "
        "--run"
    )


def test_nothing_usable_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "results" / "train" / "a")
    (tmp_path / "results/train/a/summary.json").write_text("{")
    with pytest.raises(Skip2BenchError) as caught:
        render_report(ReportConfig())
    assert str(caught.value) == (
        "no run below 'results' can be reported: 1 cannot be read, among them 'results/train/a' "
        "(summary.json is no JSON: Expecting property name enclosed in double quotes (line 1)); "
        "mend or remove that, or make a run with 'skip2bench bench' or 'skip2bench train'"
    )


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """The folder of a sweep below results."""
    shutil.copytree(TUNED / "tune", tmp_path / "results" / "tune")
    (folder,) = (tmp_path / "results" / "tune").iterdir()
    return folder


def test_a_sweep_is_read_and_its_finalists_comparison_is_no_run_of_its_own(tuned: Path) -> None:
    results = tuned.parents[1]
    for root in (results, results / "tune", tuned):
        runs, unreadable = read_runs(root)
        assert [run.folder for run in runs] == [tuned]
        assert unreadable == {}
    (run,) = read_runs(results)[0]
    assert is_tune(run)
    assert (run.kind, run.label) == ("tune", "tune --budget 10")
    found = read_tune(run)
    assert len(found.configurations) == run.summary.configurations == 12
    assert [one.label for one in found.finalists] == list(found.finalist_names)
    # asked for by itself it is a comparison like any other
    (alone,) = read_runs(tuned / "finalists")[0]
    assert alone.kind == "compare"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda it: it.update(schema_version=2), NEWER),
        (lambda it: it["configurations"][0].update(rank=0), "configurations[0].rank is 0, where a whole number from 1 was expected"),
        (lambda it: it["configurations"][0].update(best_val_loss="low"), "configurations[0].best_val_loss is 'low', where a loss was expected"),
        (lambda it: it["configurations"][1].update(name=it["configurations"][0]["name"]), "two configurations share a name"),
        (lambda it: it["sensitivity"][0].update(n=None), "sensitivity[0].n is missing"),
        (lambda it: it["rungs"].append("x"), "rungs[3] is 'x', where a mapping was expected"),
        (lambda it: it["finalists"].pop(), "finalist_names does not name each of the finalists"),
        (lambda it: it["finalists"][1].update(is_baseline=True), "two finalists are what the others are compared with"),
        (lambda it: it["finalists"][0]["figures"].pop("train_seconds"), "finalists[0].figures.train_seconds is missing"),
        (lambda it: it["picks"][0].update(configuration="x"), "'x' is none of its configurations"),
        (lambda it: it["picks"][0].update(command=["rm"]), "picks[0].command is a list, where text was expected"),
        (lambda it: it["finalist_names"].__setitem__(0, "y"), "'y' is none of its configurations"),
        (lambda it: it.pop("planned_steps"), "planned_steps is missing"),
    ],
)  # fmt: skip
def test_a_sweeps_results_that_cannot_be_trusted(change: Any, reason: str, tuned: Path) -> None:
    path = tuned / "tune.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    run = read_run(tuned)
    assert is_tune(run)
    with pytest.raises(DamagedFileError) as caught:
        read_tune(run)
    assert str(caught.value) == f"tune.json: {reason}"
