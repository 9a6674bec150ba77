"""Rules that speak when they apply, and only then."""

import pytest
from made_records import make_configuration

from skip2bench.report.diagnosis import diagnose
from skip2bench.report.tables.bench_rows import Reduction


def make_row(**changes):
    return {
        "label": "bench row",
        "method": "skip2",
        "is_disturbed": False,
        "backward_seconds": 0.05,
        "backward_reduction": Reduction(value=0.9, low=0.88, high=0.92, is_difference=True),
        "backward_flops_reduction": 0.92,
        "memory": {"saved_reduction": 0.8},
    } | changes


def make_entry(**changes):
    return make_configuration(**describe_entry() | changes)


def describe_entry():
    means = {"train_seconds": 10.0, "data_seconds": 0.1, "forward_seconds": 4.0}
    means |= {"backward_seconds": 4.0, "optimizer_seconds": 0.2}
    return {
        "label": "entry",
        "method": "skip2",
        "seeds": [1, 2, 3],
        "learning_rate_at_edge": False,
        "against_baseline": {"final_val_loss": {"ratio": 1.01}},
        "figures": {name: {"mean": value, "std": 0.2} for name, value in means.items()},
    }


def figures(**changes):
    return describe_entry()["figures"] | {
        name: {"mean": mean, "std": std} for name, (mean, std) in changes.items()
    }


def test_nothing_is_said_where_nothing_is_wrong():
    assert diagnose([make_row()], [make_entry()], 0.5, 2) == []
    assert diagnose([], [], None, 1) == []


@pytest.mark.parametrize(
    ("rule", "row", "entry"),
    [
        ("memory", {"memory": {"saved_reduction": -0.1}}, {}),
        ("speed", {"backward_flops_reduction": 1.05}, {}),
        ("small_batch", {"method": "lora", "backward_seconds": 1e-3}, {}),
        ("accuracy", {}, {"against_baseline": {"final_val_loss": {"ratio": 1.06}}}),
        ("edge", {}, {"learning_rate_at_edge": True}),
        ("uncached", {}, {"method": "skip"}),
        ("overhead", {}, {"figures": figures(data_seconds=(9.0, 0.0))}),
        ("unstable", {}, {"figures": figures(train_seconds=(10.0, 1.5))}),
        ("few_runs", {}, {"seeds": [1, 2]}),
    ],
)
def test_a_rule_speaks_where_it_applies(rule, row, entry):
    found = diagnose([make_row(**row)], [make_entry(**entry)], 0.5, 2)
    assert [finding.rule for finding in found] == [rule]
    assert found[0].labels == (["bench row"] if row else ["entry"])


def test_a_busy_machine_is_named():
    (finding,) = diagnose([make_row()], [make_entry()], 3.5, 2)
    assert (finding.rule, finding.figures) == ("busy", {"load": 3.5})
