"""An option says once what it is for; here one more is made, and everything that follows looked at.

`Wider` is `TrainConfig` as if somebody had just added options to it, one for each role that counts.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import pytest
import yaml
from made_records import make_run

from skip2bench.compare.folder import describe_cell, make_key
from skip2bench.compare.matrix import list_cells, list_configurations
from skip2bench.compare.peers.run import check_peers
from skip2bench.config.commands import BenchConfig, DoctorConfig, ReportConfig
from skip2bench.config.compare import CompareConfig, load_compare_config
from skip2bench.config.methods import Method
from skip2bench.config.options import Role, is_switch, list_options, option, to_plain
from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.resources import embedded_checkpoint
from skip2bench.machine.environment_record import Environment
from skip2bench.models.base import load_config
from skip2bench.report.groups import combine_runs
from skip2bench.report.selection import Selection, select_runs
from skip2bench.results import conditions as run_switches
from skip2bench.results.conditions import read_conditions
from skip2bench.results.reading import read_runs
from skip2bench.train.plan import plan_training
from skip2bench.train.resume import find_differences, identify
from skip2bench.train.run import run_training

RESULTS = Path(__file__).parents[1] / "data/results"
SKIP2 = "20261123T101300Z-pystd-skip2-0-1-2-3"
KEPT_APART = ["new_condition", "new_backbone", "new_variant"]


@dataclass(frozen=True, kw_only=True)
class Wider(TrainConfig):
    """With options that nothing else knows."""

    new_condition: int = option(1, "Must agree.", role="condition")
    new_switch: bool = option(False, "Must agree, and is off unless asked for.", role="condition")
    new_backbone: int = option(1, "Must agree, and changes activations.", role="backbone")
    new_variant: int = option(1, "Makes a configuration of its own.", role="variant")
    new_place: int = option(1, "Changes no figure.", role="place")
    new_call: int = option(1, "Is forgotten.", role="call")


@pytest.fixture
def selected(tmp_path, monkeypatch):
    """What a report compares where a newer run like another has other values of the options."""
    monkeypatch.setattr(run_switches, "TrainConfig", Wider)

    def select(**values) -> Selection:
        root = tmp_path / "results"
        shutil.copytree(RESULTS, root)
        newer = root / "train" / "20261123T111300Z-pystd-skip2-newer"
        shutil.copytree(root / "train" / SKIP2, newer)
        summary = json.loads((newer / "summary.json").read_text())
        summary["started_at"] = "2026-11-23T11:13:00+00:00"
        (newer / "summary.json").write_text(json.dumps(summary))
        config = yaml.safe_load((newer / "config.yaml").read_text())
        (newer / "config.yaml").write_text(yaml.safe_dump(config | values))
        return select_runs(read_runs(root)[0], root)

    return select


def reason(selection: Selection) -> str | None:
    """Why the older of the two runs is left out; None where it is compared."""
    found = {Path(item.folder).name: item for item in selection.left_out}
    return found[SKIP2].reason if SKIP2 in found else None


@pytest.mark.parametrize("name", ["new_condition", "new_backbone"])
def test_a_report_leaves_out_runs_with_another_condition(selected, name):
    selection = selected(**{name: 2})
    assert reason(selection) == "differs"
    left_out = next(item for item in selection.left_out if item.folder.endswith(SKIP2))
    assert left_out.differences == {name: (1, 2)}  # the older had the default


def test_a_report_leaves_out_runs_on_another_number_of_devices(selected):
    assert reason(selected(devices=2)) == "differs"


def test_a_cache_of_another_dtype_makes_a_configuration_of_its_own(selected):
    selection = selected(cache_dtype="int8")
    assert reason(selection) is None
    labels = [entry.label for entry in combine_runs(selection.shown.runs, {}).configurations]
    assert sum("cache_dtype int8" in label for label in labels) == 1


def test_a_report_shows_variants_beside_each_other(selected):
    selection = selected(new_variant=2)
    assert reason(selection) is None
    labels = [entry.label for entry in combine_runs(selection.shown.runs, {}).configurations]
    assert sum("Skip2-LoRA (4 blocks)" in label for label in labels) == 2
    assert sum("new_variant 2" in label for label in labels) == 1


@pytest.mark.parametrize("name", ["new_place", "new_call"])
def test_a_report_takes_runs_that_differ_in_a_place_for_repetitions(selected, name):
    assert reason(selected(**{name: 2})) == "superseded"


def test_a_comparison_runs_again_what_differs_in_more_than_a_place(tmp_path):
    compare = load_compare_config({"methods": "lora,skip2", "blocks": ["fast"]})
    configurations = list_configurations(compare, load_config(embedded_checkpoint()))
    cell = list_cells(compare, configurations, tmp_path)[0]
    plain = to_plain(cell.config)

    def key(**values) -> str:
        return make_key(
            describe_cell(replace(cell, config=Wider(**plain | values)), "d"), Environment()
        )

    assert {key(new_place=2), key(new_call=2), key(logger="tensorboard")} == {key()}
    others = [key(**{name: 2}) for name in KEPT_APART]
    assert len({key(), *others}) == len(others) + 1


@pytest.fixture
def values(tiny_checkpoint, tiny_data, tmp_path):
    return {
        **{"method": "skip2", "blocks": "0,1", "checkpoint_dir": tiny_checkpoint},
        **{"data": str(tiny_data), "max_steps": 2, "lr_warmup_steps": 1, "device": "cpu"},
        **{"out_dir": tmp_path / "run", "micro_batch_size": 4},
    }


def test_a_run_goes_on_with_all_but_another_place(values):
    def identity(**changes):
        plan = plan_training(Wider(**values | changes))
        return identify(plan, Environment(checkpoint={"sha256": "a", "model_config_sha256": "b"}))

    same = identity()
    for name in ("new_place", "new_call", "save_interval"):
        assert identity(**{name: 2}) == same
    for name in (*KEPT_APART, "eval_interval"):
        assert identity(**{name: 2}) != same


def test_what_differs_is_named_to_whoever_resumes(values):
    run = make_run(config=to_plain(Wider(**values)))

    def differences(**changes):
        return find_differences(run, Wider(**values, **changes), {"data": "a"})

    assert differences(new_place=2, new_call=2) == {}
    assert differences(new_variant=2) == {"new_variant": (1, 2)}
    # where nobody has written down what was in it, a place is what it is called
    assert differences(val_data="other.json") == {"val_data": (None, "other.json")}


def test_a_kept_cache_serves_all_but_another_backbone(values, tmp_path):
    def is_kept(**changes) -> bool:
        config = values | {"cache_dir": tmp_path / "kept", "force": True} | changes
        return run_training(Wider(**config), ["train"]).cache_kept

    assert not is_kept()
    assert is_kept(new_condition=2, new_variant=2, new_place=2)
    assert not is_kept(new_backbone=2)
    assert is_kept(new_backbone=2)


def test_peers_run_without_a_switch_that_they_do_not_know(values):
    check_peers(("litgpt",), plan_training(Wider(**values)))
    with pytest.raises(Skip2BenchError, match="peers run without new_switch, so that they would"):
        check_peers(("litgpt",), plan_training(Wider(**values, new_switch=True)))


@pytest.mark.parametrize("config", [TrainConfig, BenchConfig, DoctorConfig, CompareConfig])
def test_every_option_says_what_it_is_for(config):
    known = set(get_args(Role))
    facets = {"help", "role", "recorded_as", "taken_by", "set_by_matrix", "repeatable", "one_way"}
    facets |= {"also", "is_path"}
    for item in list_options(config, *known):
        assert item.metadata.keys() <= facets
        if "taken_by" in item.metadata:
            assert hasattr(Method(name="x", title="x", trains=""), item.metadata["taken_by"])
    assert {item.name for item in list_options(config, *known)} == set(config.__dataclass_fields__)
    assert "out_dir" in {item.name for item in list_options(config, "call")}


def test_no_report_records_anything():
    assert {it.metadata["role"] for it in ReportConfig.__dataclass_fields__.values()} == {"call"}


def test_what_runs_recorded_is_recorded_under_that_name(values):
    known = {*plan_training(TrainConfig(**values)).describe().to_plain(), "steps"}
    recorded = {
        item.metadata["recorded_as"]
        for item in TrainConfig.__dataclass_fields__.values()
        if "recorded_as" in item.metadata
    }
    assert recorded <= known


def test_conditions_and_switches_are_these():
    """What a report holds runs to; whoever changes a role sees it here."""
    run = make_run()
    assert sorted(read_conditions(run)) == [
        *("adam_beta1", "adam_beta2", "checkpoint", "compile", "data", "device", "devices"),
        *("global_batch_size", "gradient_checkpointing", "hardware", "lr_warmup_steps", "max_norm"),
        *(
            "model",
            "num_nodes",
            "patience",
            "precision",
            "quantize",
            "steps",
            "threads",
            "versions",
        ),
        "weight_decay",
    ]
    switches = [it.name for it in TrainConfig.__dataclass_fields__.values() if is_switch(it)]
    assert switches == [
        *("max_norm", "patience", "stream_blocks", "gradient_checkpointing", "quantize", "compile")
    ]
