"""A search of learning rates: which runs it asks for, and what it does not run."""

from pathlib import Path

import pytest
from made_records import make_summary

from skip2bench.compare.matrix import list_cells, list_configurations
from skip2bench.compare.rates import MOST_EXTENSIONS, first_rates, search_rate
from skip2bench.config.compare import load_compare_config
from skip2bench.io.resources import embedded_checkpoint
from skip2bench.models.base import load_config
from skip2bench.results.figures import CellResult

FIRST = (3e-3, 1e-3, 9e-3)
LOST = "diverges"


def ended(rate, loss, configuration="lora", seed=1337):
    """A cell of the search; LOST for a loss that was not finite, "oom" for one that did not fit."""
    status = {LOST: "failed", "oom": "oom"}.get(loss, "ok")
    summary = make_summary(
        status=status,
        final_val_loss=loss if status == "ok" else None,
        diverged_at_step=3 if loss == LOST else None,
    )
    return CellResult(
        name=f"{configuration}-lr{rate:g}-seed{seed}",
        configuration=configuration,
        role="run",
        learning_rate=rate,
        seed=seed,
        status=status,
        summary=summary,
        decides_rate=seed == 1337,
    )


def search_to_the_end(losses):
    """Rates in the order they were asked for, and the one that is taken."""
    results = []
    while True:
        search = search_rate(FIRST, results)
        if search.is_over:
            return search.rates, search.best
        (rate,) = [it for it in search.rates if it not in {r.learning_rate for r in results}][:1]
        results.append(ended(rate, losses.get(rate, 9.0)))


def test_the_grid_begins_at_the_usual_rate_and_its_neighbours():
    assert first_rates(3e-3) == FIRST
    assert first_rates(1e-3) == (1e-3, 3.33e-4, 3e-3)


@pytest.mark.parametrize(
    ("losses", "further", "best"),
    [
        ({3e-3: 2.0, 1e-3: 2.1, 9e-3: 2.1}, (), 3e-3),
        ({3e-3: 2.1, 1e-3: 2.2, 9e-3: 2.0, 2.7e-2: 2.3}, (2.7e-2,), 9e-3),
        ({3e-3: 2.1, 1e-3: 2.2, 9e-3: 2.0, 2.7e-2: LOST}, (2.7e-2,), 9e-3),
        ({3e-3: LOST, 1e-3: 2.2, 9e-3: LOST, 3.33e-4: 2.0, 1.11e-4: 2.1}, None, 3.33e-4),
        ({3e-3: LOST, 1e-3: LOST, 9e-3: LOST, 3.33e-4: 2.0, 1.11e-4: 2.1}, None, 3.33e-4),
        ({3e-3: 2.0, 1e-3: LOST, 9e-3: 2.1}, (), 3e-3),
        (dict.fromkeys(FIRST, "oom"), (), None),
    ],
)
def test_a_grid_is_extended_until_its_best_is_inside(losses, further, best):
    rates, found = search_to_the_end(losses)
    expected = (3.33e-4, 1.11e-4) if further is None else further
    assert (rates[3:], found) == (expected, best)


def test_a_search_ends_though_the_loss_falls_for_ever():
    falling = {3e-3 * 3**k: 2.0 - k for k in range(-1, 9)}
    rates, best = search_to_the_end({float(f"{k:.3g}"): v for k, v in falling.items()})
    assert len(rates) == 3 + MOST_EXTENSIONS
    assert best == max(rates)
    rates, best = search_to_the_end(dict.fromkeys([*FIRST, *(3.33e-4, 1.11e-4, 3.7e-5)], LOST))
    assert (len(rates), best) == (3 + MOST_EXTENSIONS, 1.23e-5)


@pytest.fixture
def listed():
    """Names of the cells that follow from results, without those of caches."""

    def run(results=(), *, is_forecast=False, **values):
        config = load_compare_config(
            {"methods": "lora,skip2", "blocks": ["fast"], "learning_rates": "auto"} | values
        )
        configurations = list_configurations(config, load_config(embedded_checkpoint()))
        cells = list_cells(
            config, configurations, Path("cache"), found=results, is_forecast=is_forecast
        )
        return [cell for cell in cells if cell.role != "cache"]

    return run


def names(cells):
    return [cell.name.replace("-seed1", "@1") for cell in cells]


def test_other_seeds_run_once_a_rate_is_found_and_at_that_alone(listed):
    first = ["lora-lr0.003", "lora-lr0.001", "lora-lr0.009"]
    assert names(listed()) == [
        f"{name}{rate}@1337"
        for rate in ("0.003", "0.001", "0.009")
        for name in ("lora-lr", "skip2-0-3-lr")
    ]
    found = [ended(*it) for it in ((3e-3, 2.0), (1e-3, 2.1), (9e-3, 1.9))]
    assert names(listed(found))[-1] == "lora-lr0.027@1337"  # before any seed of another
    found.append(ended(2.7e-2, LOST))
    cells = listed(found)
    lora = [cell.name for cell in cells if cell.configuration == "lora" and not cell.decides_rate]
    assert lora == ["lora-lr0.009-seed1338", "lora-lr0.009-seed1339"]
    assert [cell.name for cell in cells if cell.decides_rate and cell.name.startswith(first[0])]
    skip2 = [cell for cell in cells if cell.configuration == "skip2-0-3"]
    assert all(cell.decides_rate for cell in skip2)
    # a run with the cache kept stands beside each seed's at the chosen rate
    found += [ended(rate, 2.0 + rate, "skip2-0-3") for rate in FIRST]
    found += [ended(3.33e-4, 2.5, "skip2-0-3")]
    reused = [cell.name for cell in listed(found) if cell.role == "reused"]
    assert reused == [f"skip2-0-3-lr0.001-seed{seed}-reused" for seed in (1337, 1338, 1339)]


def test_what_is_expected_is_what_runs_where_the_usual_rate_is_the_best(listed):
    found = [
        ended(rate, 2.0 + (rate != 3e-3), name) for name in ("lora", "skip2-0-3") for rate in FIRST
    ]
    assert names(listed(is_forecast=True)) == names(listed(found))
    assert len(listed(found)) == 2 * (3 + 2) + 3


def test_a_control_and_peers_take_the_rate_of_what_they_stand_for(listed):
    more = {"aa": True, "peers": "litgpt,peft"}
    assert {cell.configuration for cell in listed(**more)} == {"lora", "skip2-0-3"}
    found = [ended(*it) for it in ((3e-3, 2.0), (1e-3, 2.1), (9e-3, 2.1))]
    others = [cell for cell in listed(found, **more) if cell.configuration not in ("skip2-0-3",)]
    for name in ("lora-aa", "peer-litgpt", "peer-peft"):
        own = [cell for cell in others if cell.configuration == name]
        assert [cell.config.learning_rate for cell in own] == [3e-3] * 3
        assert not any(cell.decides_rate for cell in own)


@pytest.mark.parametrize(("seeds", "counts"), [(3, True), (4, False)])
def test_the_seed_that_chose_counts_only_where_there_are_too_few_others(listed, seeds, counts):
    cells = listed(is_forecast=True, seeds=seeds)
    assert {cell.counts for cell in cells if cell.config.seed == 1337} == {counts}
    assert all(cell.counts for cell in cells if cell.config.seed != 1337)
    # what chooses no rate does not run for nothing
    others = [cell for cell in listed(is_forecast=True, seeds=seeds, aa=True) if cell.role != "run"]
    others += [it for it in listed(is_forecast=True, seeds=seeds, aa=True) if "-aa" in it.name]
    assert (1337 in {cell.config.seed for cell in others}) == counts


def test_a_configuration_with_rates_of_its_own_keeps_them(listed):
    skip = {"method": "skip", "blocks": "0", "learning_rates": [0.1, 0.2]}
    cells = [it for it in listed(configurations=[{"method": "lora"}, skip]) if it.counts]
    own = [cell for cell in cells if cell.configuration == "skip-0"]
    assert [cell.config.learning_rate for cell in own] == [0.1, 0.2] * 3
    assert not any(cell.decides_rate for cell in own)
    # and one may search where the others do not
    entries = [{"method": "lora", "learning_rates": "auto"}, skip]
    cells = listed(configurations=entries, learning_rates=[0.1])
    assert {cell.configuration for cell in cells if cell.decides_rate} == {"lora"}
