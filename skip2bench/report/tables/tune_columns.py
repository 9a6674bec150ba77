"""Tables of a sweep, as `columns` has the others': results of the finalists, and the exploration.

Their rows are in what `data` collects of the sweep, and on the terminal in `tune.json` itself.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from skip2bench.report.markdown import escape_markdown
from skip2bench.report.tables.cells import (
    COUNT,
    LABEL,
    LOSS,
    RATE,
    RUNS,
    TRAIN_SECONDS,
    TRAINABLE,
    Column,
    Format,
    Output,
    Row,
    Table,
    figure_over_runs,
    own,
    plain,
    ratio,
    read,
)

SHOWN = 15
"""Configurations of the ranking in a table; `tune.csv` has all."""
_JA = {
    "status": {
        "finished": "最後まで学習",
        "left": "途中で脱落",
        "diverged": "発散",
        "training": "学習中",
    },
    "origin": {
        "drawn": "探索空間から抽出",
        "guide": "ガイドのプリセット",
        "single": "単独ブロック",
        "screened": "良い単独ブロックの組み合わせ",
        "rate": "有力設定の学習率を変更",
    },
    "factor": {
        "blocks": "ブロック",
        "rank": "ランク",
        "learning_rate": "学習率",
        "alpha": "alpha",
        "dropout": "dropout",
        "weight_decay": "weight decay",
        "features": "入力特徴 (features)",
    },
}
_EN = {
    "status": {"left": "left early"},
    "origin": {
        "guide": "the guide's preset",
        "single": "one block alone",
        "screened": "best single blocks together",
        "rate": "leader at another rate",
    },
}


def name_in_words(kind: str, word: str, output: Output) -> str:
    """A status, an origin or a factor of `tune.json` in words; itself where none are known."""
    if output == "ja":
        return _JA[kind].get(word, word)
    return _EN.get(kind, {}).get(word, word.replace("_", " "))


def _words(kind: str) -> Format:
    def show(word: str, output: Output) -> str:
        # a narrow terminal has the file's own word, which is short
        return word if output == "screen" else escape_markdown(name_in_words(kind, word, output))

    return show


def show_blocks(blocks: Sequence[int], _: object = None) -> str:
    """Numbers of blocks, those that follow one another as a range: "0-3, 7"."""
    runs = groupby(enumerate(sorted(blocks)), key=lambda item: item[1] - item[0])
    ranges = [[block for _, block in run] for _, run in runs]
    return ", ".join(f"{it[0]}-{it[-1]}" if len(it) > 1 else str(it[0]) for it in ranges)


def _text(value: str, output: Output) -> str:
    return value if output == "screen" else escape_markdown(value)


_EXPLORED_LOSS = own(
    "best_val_loss", "Best validation loss", "最良の検証損失", LOSS, short="Best val loss"
)
_STEP = own("step", "Updates", "更新回数", COUNT)
_STATUS = own("status", "Came", "状態", _words("status"), is_text=True)
_EXPLORED = (
    LABEL,
    own("blocks", "Blocks", "ブロック", show_blocks, is_text=True),
    *(own("rank", "Rank", "ランク", COUNT), RATE, TRAINABLE),
    *(_EXPLORED_LOSS, _STEP, _STATUS),
    own("origin", "Tried because", "候補にした理由", _words("origin"), is_text=True),
)
_KEPT_LOSS = figure_over_runs(
    "best_val_loss", "Validation loss", "検証損失", LOSS, short="Val loss"
)
_SENSITIVITY = (
    own("factor", "Choice", "項目", _words("factor"), is_text=True),
    own("value", "Value", "値", _text, is_text=True),
    own("n", "Configurations", "設定数", COUNT),
    own("best_val_loss", "Best loss", "最良損失", LOSS),
    own("median_val_loss", "Median loss", "損失の中央値", LOSS),
)
_RUNGS = (
    Column(
        key="rung",
        en="Rung",
        ja="段 (rung)",
        figure=lambda row: read(row, "rung") + 1,
        show=plain(str),
    ),
    own("step", "Updates", "更新回数", COUNT),
    own("configurations", "Configurations", "設定数", COUNT),
    own("kept", "Went on", "継続", COUNT),
    own("diverged", "Diverged", "発散", COUNT),
)
_LOSSES = (RUNS, _KEPT_LOSS, ratio("best_val_loss"))
_TIMES = (TRAIN_SECONDS, ratio("train_seconds"))


def _of_sweep(name: str) -> Callable[[Mapping[str, Any]], Sequence[Row]]:
    """Rows of the newest sweep, if there is one."""
    return lambda data: data["tune"][name] if data["tune"] else ()


TUNE_TABLES = {
    "tune_finalists": Table(
        rows=_of_sweep("finalists"), columns=(LABEL, *_LOSSES, *_TIMES, TRAINABLE)
    ),
    "tune_explored": Table(rows=_of_sweep("explored"), columns=_EXPLORED),
    "tune_sensitivity": Table(rows=_of_sweep("sensitivity"), columns=_SENSITIVITY),
    "tune_rungs": Table(rows=_of_sweep("rungs"), columns=_RUNGS),
}
"""The report's on a sweep, by name."""
EXPLORED_SCREEN = (_EXPLORED_LOSS, _STEP, _STATUS, TRAINABLE)
"""The terminal's of the ranking; the labels come first."""
FINALIST_SCREENS = {"Loss": _LOSSES, "Time and size": (*_TIMES, TRAINABLE)}
"""The terminal's of the finalists, by title."""
