"""Tables of a sweep, as `columns` has the others'."""

from skip2bench.io import units
from skip2bench.report.cells import Column, Row, over_runs, plain, read, show_duration, show_ratio
from skip2bench.report.columns import LABEL

_LOSS, _COUNT, _GENERAL = plain(units.format_loss), plain(units.format_count), plain("{:g}".format)
_STATUS_JA = {
    "finished": "最後まで",
    "left": "途中で脱落",
    "diverged": "発散",
    "training": "学習中",
}


def _show_status(status: str, output: object) -> str:
    return _STATUS_JA.get(status, status) if output == "ja" else status


def _against_first(name: str) -> Column:
    def find(row: Row) -> object:
        return None if read(row, "is_baseline") else read(row, "against_baseline").get(name)

    return Column(key=f"{name}_ratio", en="Ratio", ja="比", short="×", figure=find, show=show_ratio)


def _own(key: str, en: str, ja: str, show: object, **more: object) -> Column:
    return Column(key=key, en=en, ja=ja, figure=lambda row: read(row, key), show=show, **more)  # type: ignore[arg-type]


_TRAINABLE = _own("trainable_parameters", "Trainable", "トレーニング可能", _COUNT)
_STATUS = _own("status", "Came", "結果", _show_status, is_text=True)
_STEP = _own("step", "Steps", "ステップ", _COUNT)
_BEST = _own("best_val_loss", "Validation loss", "検証損失", _LOSS, short="Val loss")
_RATE = _own("learning_rate", "Learning rate", "学習率", _GENERAL, short="Rate")
EXPLORED_SCREEN = (_BEST, _STEP, _STATUS, _TRAINABLE)
"""The terminal's of all configurations; the labels come first."""


def _of_runs(name: str) -> Column:
    show = _LOSS if name.endswith("loss") else show_duration
    titles = {
        "best_val_loss": ("Validation loss", "検証損失", "Val loss"),
        "train_seconds": ("Training time", "学習時間", "Time"),
    }
    en, ja, short = titles[name]
    return Column(
        key=name,
        en=en,
        ja=ja,
        short=short,
        figure=lambda entry: read(entry, "figures").get(name),
        show=over_runs(show),
    )


_RUNS = Column(
    key="n", en="n", ja="n", figure=lambda entry: len(read(entry, "seeds")), show=plain(str)
)
FINALIST_SCREEN = (
    *(_RUNS, _of_runs("best_val_loss"), _against_first("best_val_loss")),
    *(_of_runs("train_seconds"), _against_first("train_seconds"), _TRAINABLE),
)
"""The terminal's of the finalists."""
EXPLORED_COLUMNS = (
    *(LABEL, _BEST, _STEP, _STATUS, _RATE),
    _own("rank", "Rank", "ランク", _COUNT),
    Column(
        key="blocks",
        en="Blocks",
        ja="ブロック",
        figure=lambda row: len(read(row, "blocks")),
        show=_COUNT,
    ),
    _TRAINABLE,
)
FINALIST_COLUMNS = (LABEL, *FINALIST_SCREEN)
