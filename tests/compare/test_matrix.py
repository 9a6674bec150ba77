from pathlib import Path

import pytest

from skip2bench.compare.matrix import list_cells, list_configurations
from skip2bench.config.compare import load_compare_config
from skip2bench.errors import Skip2BenchError
from skip2bench.io.resources import embedded_checkpoint
from skip2bench.models.base import config_by_name, load_config

CACHE = Path("cache")


@pytest.fixture
def pystd():
    return load_config(embedded_checkpoint())


def cells_of(config, model):
    return list_cells(config, list_configurations(config, model), CACHE)


def test_the_default_matrix_of_a_model_with_eight_blocks(pystd, capsys):
    config = load_compare_config({})
    configurations = list_configurations(config, pystd)
    # "accurate" and "all" are the same eight blocks
    assert [one.name for one in configurations] == [
        *("lora", "lora-all", "skip2-0-3", "skip2-0-5", "skip2-0-7")
    ]
    assert "blocks all: listed already, left out" in capsys.readouterr().err
    cells = list_cells(config, configurations, CACHE)
    assert [cell.name for cell in cells][:9] == [
        "cache-1",
        "lora-lr0.003-seed1337",
        "lora-all-lr0.003-seed1337",
        "skip2-0-3-lr0.003-seed1337",
        "skip2-0-3-lr0.003-seed1337-reused",
        "skip2-0-5-lr0.003-seed1337",
        "skip2-0-5-lr0.003-seed1337-reused",
        "skip2-0-7-lr0.003-seed1337",
        "skip2-0-7-lr0.003-seed1337-reused",
    ]
    assert len(cells) == 1 + 3 * 8
    assert len({cell.name for cell in cells}) == len(cells)


def test_as_many_blocks_that_are_others_are_told_apart(pystd):
    config = load_compare_config({"methods": "lora,skip2", "blocks": ["fast", "last:4", "0,7"]})
    labels = [one.label for one in list_configurations(config, pystd)]
    assert labels == [
        "Traditional LoRA",
        "Skip2-LoRA (4 blocks) [blocks 0-3]",
        "Skip2-LoRA (4 blocks) [blocks 4-7]",
        "Skip2-LoRA (2 blocks)",
    ]


def test_the_smallest_flow_has_no_lora_on_every_layer(pystd):
    configurations = list_configurations(load_compare_config({"flow": "minimal"}), pystd)
    assert [one.name for one in configurations] == ["lora", "skip2-0-3", "skip2-0-5"]


def test_a_round_over_all_configurations_ends_before_the_next_begins(pystd):
    config = load_compare_config(
        {"methods": "lora,full,skip", "blocks": ["fast"], "learning_rates": "1e-3,1e-2"}
    )
    cells = cells_of(config, pystd)
    assert len(cells) == 3 * 2 * 3
    for start in range(0, len(cells), 3):
        around = cells[start : start + 3]
        assert {cell.configuration for cell in around} == {"lora", "full", "skip-0-3"}
        assert len({(cell.config.seed, cell.config.learning_rate) for cell in around}) == 1


def test_only_cells_that_say_so_share_a_cache(pystd):
    config = load_compare_config({"learning_rates": "1e-3,1e-2", "seeds": 2})
    by_role = {}
    for cell in cells_of(config, pystd):
        by_role.setdefault(cell.role, []).append(cell)
    # a run of its own builds its cache inside its clock
    assert all(cell.config.cache_dir is None for cell in by_role["run"])
    assert all(cell.config.cache_dir == CACHE for cell in by_role["reused"] + by_role["cache"])
    # the cache holds every block that a cell will read
    assert [cell.config.blocks for cell in by_role["cache"]] == ["0,1,2,3,4,5,6,7"]
    # the clock does not depend on the learning rate: one is enough
    assert {cell.config.learning_rate for cell in by_role["reused"]} == {1e-3}
    assert len(by_role["reused"]) == 3 * 2


def test_only_cells_whose_losses_count_are_asked_for_answers(pystd):
    cells = cells_of(load_compare_config({"score": "f1", "seeds": 1}), pystd)
    assert {(cell.role, cell.config.score) for cell in cells} == {
        ("run", "f1"),
        ("reused", None),
        ("cache", None),
    }


def test_matched_ranks_train_as_many_parameters_as_the_baseline(pystd):
    config = load_compare_config(
        {
            "methods": "lora,lora-all,lora-last,full,last,skip,skip2",
            "blocks": ["0", "fast", "all"],
            "match_params": True,
            "lora_r": 8,
        }
    )
    found = {one.name: one for one in list_configurations(config, pystd)}
    assert found["lora"].trainable_parameters == 49_152
    assert found["skip2-0-7"].trainable_parameters == 49_152
    assert found["skip2-0-7"].settings.rank == 16
    assert found["skip2-0-3"].settings.rank == 32
    assert found["skip2-0"].settings.rank == 128
    assert found["full"].trainable_parameters == 4_328_640  # no rank to set
    for name in ("lora-all", "lora-last"):
        one = found[name]
        step = one.trainable_parameters / one.settings.rank
        assert abs(one.trainable_parameters - 49_152) <= step / 2  # no other rank is nearer


def test_the_baseline_runs_once_more_under_another_name(pystd):
    config = load_compare_config({"methods": "skip2,lora", "blocks": ["fast"], "aa": True})
    configurations = list_configurations(config, pystd)
    assert [one.name for one in configurations] == ["lora", "lora-aa", "skip2-0-3"]
    assert configurations[1].label == "Traditional LoRA (A/A)"
    lora, again = (
        next(c for c in cells_of(config, pystd) if c.configuration == name)
        for name in ("lora", "lora-aa")
    )
    assert lora.config == again.config


def test_peers_have_the_settings_of_lora_here(pystd):
    config = load_compare_config({"peers": "litgpt,peft,peft-dora,peft-rslora", "lora_r": 2})
    lora, *peers = list_configurations(config, pystd)[:5]
    names = ["litgpt", "peft", "peft-dora", "peft-rslora"]
    assert [one.name for one in peers] == [f"peer-{name}" for name in names]
    assert [one.label for one in peers][2:] == ["PEFT DoRA", "PEFT rsLoRA"]
    extra = [one.trainable_parameters - lora.trainable_parameters for one in peers]
    # a magnitude for each output of query and value, of 192 numbers, in 8 blocks
    assert extra == [0, 0, 8 * 2 * 192, 0]
    cells = [cell for cell in cells_of(config, pystd) if cell.peer]
    assert {(cell.peer, cell.config.lora_r) for cell in cells} == {(name, 2) for name in names}


def test_configurations_of_one_method_are_told_apart(pystd):
    config = load_compare_config(
        {
            "configurations": [
                {"method": "lora"},
                {"method": "lora", "lora_r": 8},
                {"method": "lora", "label": "mine", "max_memory": "1GiB"},
                {"method": "skip2", "blocks": [0, 2], "learning_rates": [1e-4]},
            ]
        }
    )
    found = list_configurations(config, pystd)
    assert [(one.name, one.label) for one in found] == [
        ("lora", "Traditional LoRA"),
        ("lora-2", "Traditional LoRA [lora_r 8]"),
        ("lora-3", "mine"),
        ("skip2-0_2", "Skip2-LoRA (2 blocks)"),
    ]
    assert found[2].max_memory_bytes == 2**30
    assert found[3].learning_rates == (1e-4,)


def test_all_methods_leave_out_biases_where_there_are_none(pystd, capsys):
    config = load_compare_config({"flow": "detailed"})
    assert "bias" not in {one.name for one in list_configurations(config, pystd)}
    assert "bias: pystd has no biases, left out" in capsys.readouterr().err
    pythia = config_by_name("pythia-14m")
    assert "bias" in {one.name for one in list_configurations(config, pythia)}


def test_biases_that_were_asked_for_are_an_error_where_there_are_none(pystd):
    with pytest.raises(Skip2BenchError, match="'pystd' has none; choose another method"):
        list_configurations(load_compare_config({"methods": "lora,bias"}), pystd)


def test_a_matrix_needs_its_baseline(pystd):
    with pytest.raises(
        Skip2BenchError, match="the baseline 'lora' is not among the methods; add it, or set"
    ):
        list_configurations(load_compare_config({"methods": "skip2"}), pystd)
