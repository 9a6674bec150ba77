"""What follows from a comparison's figures: a conclusion, and what to take for which purpose.

Nothing is called better inside the noise: two configurations differ only where the p-value of their
paired ratio is below 0.05, corrected for how many are tested beside one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from skip2bench.config.blocks import BLOCK_PRESETS
from skip2bench.config.methods import find_method
from skip2bench.report.tables.cells import centre
from skip2bench.results.comparison_records import ComparedConfiguration, ComparisonResults
from skip2bench.results.stats import SIGNIFICANCE, Ratio, adjust_p_values, paired_ratio

Entry = ComparedConfiguration


@dataclass(frozen=True, kw_only=True)
class Pick:
    """What is recommended for one purpose."""

    purpose: Literal["speed", "balance", "accuracy"]
    entry: Entry
    tied: Sequence[Entry]
    """Others that cannot be told from it in what the purpose asks for."""

    @property
    def is_tested(self) -> bool:
        """False where one run of it is all there is."""
        return len(self.entry.seeds) > 1


def find_conclusion(content: ComparisonResults) -> Entry | None:
    """The Skip2-LoRA configuration to speak of first, or None without one to compare.

    The fastest of those whose final loss is not above the baseline's beyond the noise; where all
    are, or were timed while something else ran, or took the same time, the one with the lowest
    loss.
    """
    entries = [entry for entry in list_skip2(content) if entry.against_baseline]
    good = [e for e in entries if not _is_worse(e) and is_measured(e, "train_seconds")]
    if good and content.matched != "time":
        return min(good, key=lambda entry: centre_of(entry, "train_seconds"))
    return min(entries, key=lambda entry: centre_of(entry, "final_val_loss"), default=None)


def find_lowest(content: ComparisonResults) -> Entry | None:
    """The configuration with the lowest final validation loss; None where none has one.

    Others' programs, and the control, are the baseline once more.
    """
    own = [entry for entry in content.configurations if not (entry.peer or entry.is_aa)]
    entries = [entry for entry in own if "final_val_loss" in entry.figures]
    return min(entries, key=lambda entry: centre_of(entry, "final_val_loss"), default=None)


def is_measured(entry: Entry, figure: str) -> bool:
    """True for a figure that is there, and in which nothing that was disturbed is."""
    return figure in entry.figures and not entry.figures[figure].is_disturbed


def _is_worse(entry: Entry) -> bool:
    ratio = entry.against_baseline.get("final_val_loss")
    if not ratio:
        return False
    return ratio.ratio > 1 and (ratio.is_difference or ratio.low is None)


def pick_presets(content: ComparisonResults) -> list[Pick]:
    """The configuration of Skip2-LoRA for speed, for balance and for accuracy.

    Speed: the shortest training clock. Accuracy: the lowest final loss. Balance: the fastest of
    those whose loss cannot be told from the lowest. Accuracy alone where all took the same time, or
    the time of one was disturbed. Empty with fewer than two to choose from.
    """
    entries = [entry for entry in list_skip2(content) if entry.figures]
    if len(entries) < 2:
        return []
    best = min(entries, key=lambda entry: centre_of(entry, "final_val_loss"))
    as_good = [best, *_find_tied(content, best, entries, "final_val_loss")]
    accurate = Pick(purpose="accuracy", entry=best, tied=as_good[1:])
    timed = [entry for entry in entries if is_measured(entry, "train_seconds")]
    # the fastest may be one of those whose time nobody knows
    if content.matched == "time" or len(timed) < len(entries):
        return [accurate]
    fastest = min(entries, key=lambda entry: centre_of(entry, "train_seconds"))
    balanced = min(as_good, key=lambda entry: centre_of(entry, "train_seconds"))
    return [
        Pick(
            purpose="speed",
            entry=fastest,
            tied=_find_tied(content, fastest, entries, "train_seconds"),
        ),
        Pick(purpose="balance", entry=balanced, tied=()),
        accurate,
    ]


def name_preset(entry: Entry) -> str | None:
    """The preset that an entry's blocks are, where they are the first ones."""
    blocks = list(entry.blocks or ())
    found = [name for name, count in BLOCK_PRESETS.items() if blocks == list(range(count))]
    return found[0] if found else None


def compare_entries(
    content: ComparisonResults, one: Entry, other: Entry, figure: str
) -> Ratio | None:
    """Ratio of a figure of two configurations, paired by seed; None without a common seed."""
    own, others = (_by_seed(content, entry, figure) for entry in (one, other))
    seeds = sorted(own.keys() & others.keys())
    if not seeds or min(*own.values(), *others.values()) <= 0:
        return None
    return paired_ratio([own[seed] for seed in seeds], [others[seed] for seed in seeds])


def _find_tied(
    content: ComparisonResults, chosen: Entry, entries: Sequence[Entry], figure: str
) -> list[Entry]:
    tested = [
        (entry, p)
        for entry in entries
        if entry is not chosen
        and (ratio := compare_entries(content, entry, chosen, figure)) is not None
        and (p := ratio.p_value) is not None
    ]
    adjusted = adjust_p_values([p for _, p in tested])
    pairs = zip(tested, adjusted, strict=True)
    return [entry for (entry, _), p in pairs if p >= SIGNIFICANCE]


def _by_seed(content: ComparisonResults, entry: Entry, figure: str) -> dict[int, float]:
    return {
        cell.seed: cell.figures[figure]
        for cell in content.cells.values()
        if cell.configuration == entry.name
        and cell.role == "run"
        and cell.status == "ok"
        and cell.learning_rate == entry.learning_rate
        and cell.seed in entry.seeds
        and figure in cell.figures
    }


def list_skip2(content: ComparisonResults) -> Sequence[Entry]:
    """Configurations whose epochs read Skip-Cache."""
    return [e for e in content.configurations if find_method(e.method).serves_rows]


def centre_of(entry: Entry, figure: str) -> float:
    """The value of a figure that stands for its runs: see `cells.centre`."""
    return centre(entry.figures[figure], figure)
