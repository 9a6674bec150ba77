"""More seeds for what is cheap: who gets them, and that a comparison keeps to it."""

from pathlib import Path

import pytest

from skip2bench.compare.matrix import list_cells, list_configurations
from skip2bench.compare.seeds import (
    SHORT_SECONDS,
    choose_seeds,
    read_seeds,
    settle_seeds,
    write_seeds,
)
from skip2bench.config.compare import load_compare_config
from skip2bench.io.resources import embedded_checkpoint
from skip2bench.models.base import load_config


@pytest.fixture
def configurations():
    def make(**values):
        config = load_compare_config(
            {"methods": "lora,skip,skip2", "blocks": ["fast"], "seeds": "auto", **values}
        )
        return config, list_configurations(config, load_config(embedded_checkpoint()))

    return make


def choose(found, lora, skip, skip2):
    return choose_seeds(found, "lora", {"lora": lora, "skip-0-3": skip, "skip2-0-3": skip2})


def test_short_runs_get_more_seeds(configurations):
    _, found = configurations()
    # ten of them take as long as three of the baseline
    assert choose(found, 100.0, 60.0, 30.0) == {"lora": 3, "skip-0-3": 3, "skip2-0-3": 10}
    assert choose(found, 100.0, 60.0, 31.0)["skip2-0-3"] == 3
    # less than that of hours is not short
    assert choose(found, 1e6, 1e5, 1.01 * SHORT_SECONDS)["skip2-0-3"] == 3


def test_a_search_gets_a_seed_of_its_own(configurations):
    _, found = configurations(learning_rates="auto")
    assert choose(found, 100.0, 60.0, 10.0) == {"lora": 4, "skip-0-3": 4, "skip2-0-3": 10}


def test_each_has_its_own_number_of_cells(configurations):
    config, found = configurations()
    found = settle_seeds(found, choose(found, 100.0, 60.0, 10.0))
    cells = list_cells(config, found, Path("cache"))
    runs = [cell.configuration for cell in cells if cell.role == "run"]
    assert [runs.count(name) for name in ("lora", "skip-0-3", "skip2-0-3")] == [3, 3, 10]
    seeds = [cell.config.seed for cell in cells if cell.role == "run"]
    assert seeds == sorted(seeds)


def test_a_number_means_the_same_for_all(configurations):
    _, found = configurations(seeds=5)
    assert {one.seeds for one in found} == {5}


def test_a_folder_keeps_what_was_chosen(configurations, tmp_path):
    _, found = configurations()
    chosen = settle_seeds(found, choose(found, 100.0, 60.0, 10.0))
    write_seeds(tmp_path, chosen)
    assert settle_seeds(found, read_seeds(tmp_path)) == chosen
    for text in ("", "[]", '{"lora": "many", "skip-0-3": 1e9, "skip2-0-3": -1}'):
        (tmp_path / "seeds.json").write_text(text)
        assert read_seeds(tmp_path) == {}
