"""Every table of figures: which columns it has, their titles in both languages, and their format.

A new column is a `Column` here and its place in a table; the Markdown in both languages, the JSON
(`tables` of `report --json`) and the terminal follow. The sentences around the tables are the
templates'.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any

from skip2bench.config.blocks import name_range
from skip2bench.config.methods import find_method
from skip2bench.io import units
from skip2bench.io.units import Language
from skip2bench.report.tables import matching
from skip2bench.report.tables.across import ACROSS_TABLE
from skip2bench.report.tables.cells import (
    COUNT,
    LABEL,
    LOSS,
    PAIRS,
    RATE,
    RUNS,
    TRAIN_SECONDS,
    TRAINABLE,
    Column,
    Fit,
    Format,
    Row,
    Table,
    figure_over_runs,
    is_by_mean,
    over_runs,
    own,
    plain,
    ratio,
    read,
    render_markdown,
    show_duration,
    show_first_phase,
    show_peak,
    show_phase,
    show_reduction,
    show_size,
    show_speedup,
    to_plain,
)
from skip2bench.report.tables.harness import HARNESS_TABLE
from skip2bench.report.tables.score_columns import NEXT_TOKEN, SCORE_TABLE
from skip2bench.report.tables.tune_columns import TUNE_TABLES
from skip2bench.results.comparison_records import FigureSummary

_BYTES, _SIGNED = plain(units.format_bytes), plain("{:+.3f}".format)
_PERCENT, _SIGNIFICANT = plain(units.format_percent), plain(units.format_significant)
_MILLISECONDS = plain(units.format_milliseconds)


def render_tables(data: Mapping[str, Any], lang: Language) -> dict[str, str]:
    """Every table of the report in Markdown, by name.

    Args:
        data: What `data.build_report_data` returns.
        lang: Language of the titles and words.
    """
    return {
        name: render_markdown(table.columns, table.rows(data), lang)
        for name, table in TABLES.items()
    }


def collect_tables(data: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Every table of the report as JSON can hold it, by name: figures in base units."""
    return {name: to_plain(table.columns, table.rows(data)) for name, table in TABLES.items()}


# where a row keeps a figure


def _of_cache(name: str) -> Callable[[Row], Any]:
    """The same, of a method that has a cache."""
    return lambda entry: read(entry, "figures").get(name) if _is_cached(entry) else None


def _is_cached(entry: Row) -> bool:
    return find_method(read(entry, "method")).is_cached


def _phase(name: str) -> Callable[[Row], Fit]:
    return lambda row: Fit(value=read(row, name), status="oom" if read(row, "is_oom") else "ok")


def _speedup(phase: str) -> Callable[[Row], Any]:
    return lambda row: read(row, "ratios").get(phase)


def _speedup_by_flops(row: Row) -> float | None:
    """Baseline's FLOPs of backward / this one's."""
    reduction = read(row, "backward_flops_reduction")
    return None if reduction is None or reduction == 1 else 1 / (1 - reduction)


def _memory(name: str) -> Callable[[Row], Any]:
    return lambda row: read(row, "memory")[name]


def _size(name: str) -> Callable[[Row], Fit]:
    return lambda row: Fit(
        value=read(row, "memory")[name],
        status=read(row, "memory")["status"] or "ok",
        requested_bytes=read(row, "memory")["requested_bytes"],
    )


def _peaks(phase: str) -> Callable[[Row], Any]:
    def find(row: Row) -> Any:
        peaks = read(row, "memory")["phases"].get(phase)
        return peaks if peaks and peaks["peak"] is not None else None

    return find


def _count_tries(entry: Row) -> int:
    """Runs that had a target to reach."""
    tried: int | None = read(entry, "target_tried")
    return len(read(entry, "seeds")) if tried is None else tried


def _show_part(part: Mapping[str, int], _: object) -> str:
    return f"{part['runs']} / {part['of']}"


def _show_peaks(peaks: Mapping[str, Any], _: object) -> str:
    reserved = peaks["reserved"]
    return (
        f"{units.format_bytes(peaks['peak'])} "
        f"({'-' if reserved is None else units.format_bytes(reserved)})"
    )


# columns that several tables have


def _timed(key: str, en: str, ja: str, show: Format = show_phase) -> Column:
    """A phase of the benchmark."""
    return Column(key=key, en=en, ja=ja, figure=_phase(key), show=show, is_timed=True)


def _sized(key: str, en: str, ja: str, show: Format = show_size, **more: Any) -> Column:
    """Memory of the benchmark."""
    return Column(key=key, en=en, ja=ja, figure=_size(key), show=show, **more)


def _brief(name: str, en: str, ja: str, show: Format, **more: Any) -> Column:
    """A figure over runs of which the terminal shows the middle alone."""
    shown = over_runs(show, is_brief=True, by_mean=is_by_mean(name))
    return replace(figure_over_runs(name, en, ja, show, **more), show=shown)


def _reduction(name: str, en: str, ja: str, **more: Any) -> Column:
    return own(name, en, ja, _PERCENT, **more)


# parameters

_TOTAL = own("total_parameters", "Total", "全パラメータ", COUNT)
_TRAINABLE_RATIO = own("trainable_ratio", "Share of all", "全体に対する比率", _PERCENT)
_TRAINABLE_REDUCTION = own(
    "trainable_reduction", "Reduction (vs LoRA)", "削減率 (vs LoRA)", _PERCENT, short="Reduction"
)
_PARAMETERS = (
    LABEL,
    own(
        *("blocks", "Blocks", "ブロック", lambda blocks, _: name_range(blocks)),
        is_text=True,
        is_optional=True,
    ),
    TRAINABLE,
    _TRAINABLE_RATIO,
    _TRAINABLE_REDUCTION,
    own(
        "extra_parameters",
        "Difference",
        "差",
        plain("{:+,}".format),
    ),
    own("rank", "Rank", "ランク", COUNT),
)

# speed of the benchmark

_FORWARD = _timed("forward", "Forward", "Forward", show_first_phase)
_TRAIN_FORWARD = _timed("train_forward", "Train forward", "Train forward")
_BACKWARD = _timed("backward", "Backward", "Backward")
_OPTIMIZER = _timed("optimizer", "Optimizer", "Optimizer")
_CACHED_FORWARD = _timed("cached_forward", "Cached forward", "Forward (キャッシュ済み)")
_CACHED_BACKWARD = _timed("cached_backward", "Cached backward", "Backward (キャッシュ済み)")
_BENCH_SPEED = (
    *(LABEL, _FORWARD, _TRAIN_FORWARD, _BACKWARD),
    own(
        "backward_reduction",
        "Backward reduction [95 % interval]",
        "Backward 削減率 [95 % 区間]",
        show_reduction,
        is_timed=True,
    ),
    _reduction("backward_flops_reduction", "By FLOPs", "FLOPs では"),
    _OPTIMIZER,
    own("step_seconds", "1 step", "1 step", _MILLISECONDS, is_timed=True),
    own(
        *("cached_step_seconds", "Cached step", "キャッシュ済み step", _MILLISECONDS),
        is_timed=True,
    ),
)
_BENCH_STEPS = (
    LABEL,
    _reduction("step_reduction", "1 step: reduction", "1 step の削減率", is_timed=True),
    _reduction("step_flops_reduction", "By FLOPs", "FLOPs では"),
    _reduction(
        "cached_step_reduction",
        "Cached step: reduction against LoRA's step",
        "キャッシュ済み step の削減率（LoRA の 1 step 比）",
        is_timed=True,
    ),
    _reduction("cached_step_flops_reduction", "By FLOPs", "FLOPs では"),
)


def _faster(phase: str) -> Column:
    """The terminal's own: how many times as fast as the first configuration."""
    return Column(
        key=f"{phase}_speedup",
        en="× faster",
        ja="倍速",
        figure=_speedup(phase),
        show=show_speedup,
        is_timed=True,
    )


_FASTER_BY_FLOPS = Column(
    key="backward_flops_speedup",
    en="By FLOPs",
    ja="FLOPs では",
    figure=_speedup_by_flops,
    show=_SIGNIFICANT,
)

# speed of training

_REUSED_SECONDS = _brief(
    "reused_train_seconds",
    "Cache kept: training time",
    "キャッシュ再利用時の学習時間",
    show_duration,
    short="Cache kept",
    is_optional=True,
)
_REUSED_RATIO = replace(ratio("reused_train_seconds"), is_optional=True)
_EPOCH_SECONDS = figure_over_runs("epoch_seconds", "An epoch", "1 エポック", show_duration)
_SPEED = (
    *(LABEL, RUNS, PAIRS, TRAIN_SECONDS, ratio("train_seconds")),
    replace(
        figure_over_runs(
            "cache_build_seconds", "Building the cache", "キャッシュ構築", show_duration
        ),
        figure=_of_cache("cache_build_seconds"),
    ),
    *(_EPOCH_SECONDS, ratio("epoch_seconds")),
    *(_REUSED_SECONDS, _REUSED_RATIO),
    figure_over_runs("steps_per_second", "steps/s", "steps/s", _SIGNIFICANT),
    figure_over_runs("tokens_per_second", "tokens/s", "tokens/s", _SIGNIFICANT),
    figure_over_runs("wall_seconds", "Whole process", "プロセス全体", show_duration),
)

# memory

_SAVED = "Saved for backward"
_SAVED_JA = "逆伝播用の保存"
_BENCH_PEAK = _sized("peak_bytes", "Peak", "ピーク", show_peak)
_STEP_BYTES = _sized("step_bytes", "Increase in a step", "step 中の増加", short="Of a step")
_CACHED_STEP_BYTES = _sized(
    "cached_step_bytes",
    "Increase in a cached step",
    "キャッシュ済み step 中の増加",
    short="Of a cached step",
)
_BENCH_SAVED = _sized("saved_bytes", _SAVED, _SAVED_JA)
_BENCH_CACHED_SAVED = _sized(
    "cached_saved_bytes",
    f"{_SAVED} (cached)",
    f"{_SAVED_JA} (キャッシュ済み)",
    short="Saved, cached step",
)


def _memory_reduction(name: str) -> Column:
    return Column(key=name, en="Reduction", ja="削減率", figure=_memory(name), show=_PERCENT)


_BENCH_MEMORY = (
    *(LABEL, _BENCH_PEAK),
    Column(
        key="reserved_bytes",
        en="Reserved",
        ja="予約済み",
        figure=_memory("reserved_bytes"),
        show=_BYTES,
        is_optional=True,
    ),
    *(_STEP_BYTES, _memory_reduction("step_reduction")),
    *(_BENCH_SAVED, _memory_reduction("saved_reduction")),
    *(_BENCH_CACHED_SAVED, _memory_reduction("cached_saved_reduction")),
)
_BENCH_PEAKS = (
    LABEL,
    *(
        replace(column, figure=_peaks(column.key), show=_show_peaks, is_timed=False)
        for column in (
            *(_FORWARD, _TRAIN_FORWARD, _BACKWARD, _OPTIMIZER),
            *(_CACHED_FORWARD, _CACHED_BACKWARD),
        )
    ),
)
_PEAK = _brief("peak_memory_bytes", "Peak", "ピーク", _BYTES)
_SAVED_BYTES = _brief("saved_for_backward_bytes", _SAVED, _SAVED_JA, _BYTES)
_CACHE_BYTES = replace(
    _brief("cache_bytes", "Skip-Cache", "Skip-Cache", _BYTES), figure=_of_cache("cache_bytes")
)
_ADAPTER_BYTES = _brief("adapter_bytes", "Adapter file", "アダプターのファイル", _BYTES)
_MEMORY = (
    *(LABEL, _PEAK, ratio("peak_memory_bytes")),
    figure_over_runs("steps_peak_memory_bytes", "Peak of the steps", "ステップ中のピーク", _BYTES),
    figure_over_runs("reserved_memory_bytes", "Reserved", "予約済み", _BYTES),
    *(_SAVED_BYTES, ratio("saved_for_backward_bytes")),
    *(_CACHE_BYTES, _ADAPTER_BYTES),
)
_MICRO_BATCH = Column(
    key="micro_batch_size",
    en="Micro-batch",
    ja="マイクロバッチ",
    # steps from the cache have none
    figure=lambda entry: (
        None if find_method(read(entry, "method")).serves_rows else read(entry, "micro_batch_size")
    ),
    show=COUNT,
)
_WHOLE_PEAK = (
    replace(_PEAK, en="Peak memory", ja="ピークメモリ", short="Peak"),
    ratio("peak_memory_bytes"),
)
_BEST_BATCH = (
    *(LABEL, RUNS),
    *(_MICRO_BATCH, TRAIN_SECONDS, ratio("train_seconds")),
    *(_EPOCH_SECONDS, ratio("epoch_seconds"), *_WHOLE_PEAK),
)

# accuracy

_FINAL_LOSS = figure_over_runs("final_val_loss", "Final loss", "最終損失", LOSS)
_TO_TARGET = _brief(
    "time_to_target_seconds",
    "To the target loss",
    "目標損失までの時間",
    show_duration,
    short="To target",
)
_REACHED = Column(
    key="target_reached",
    en="Reached",
    ja="到達",
    figure=lambda entry: {"runs": read(entry, "target_reached"), "of": _count_tries(entry)},
    show=_show_part,
)
_FORGETTING = _brief("forgetting", "Forgetting", "忘却", _SIGNED)
_ACCURACY = (
    *(LABEL, RUNS, PAIRS, RATE),
    figure_over_runs("initial_val_loss", "Initial loss", "初期損失", LOSS),
    *(_FINAL_LOSS, ratio("final_val_loss")),
    figure_over_runs("best_val_loss", "Best loss", "最良損失", LOSS),
    figure_over_runs("loss_change_per_step", "Δloss / step", "Δloss / step", _SIGNIFICANT),
    *(_TO_TARGET, ratio("time_to_target_seconds")),
    figure_over_runs("steps_to_target", "Steps", "ステップ", _SIGNIFICANT),
    figure_over_runs("samples_to_target", "Samples", "サンプル", _SIGNIFICANT),
    *(_REACHED, _FORGETTING, NEXT_TOKEN),
)

_BEST = {"en": " (best)", "ja": "（最良）"}


def _list_grid(data: Mapping[str, Any]) -> list[Row]:
    """Each learning rate of each configuration."""
    return [
        {
            **row.to_plain(),
            "label": entry.label,
            "is_best": row.learning_rate == entry.learning_rate,
        }
        for entry in data["entries"]
        for row in entry.grid
    ]


def _loss_at_rate(row: Row) -> FigureSummary | None:
    """Of the runs that ended well."""
    if not read(row, "ok"):
        return None
    names = {"n": "ok", "mean": "mean_final_val_loss", "std": "std_final_val_loss"}
    return FigureSummary(**{name: read(row, key) for name, key in names.items()})


_LEARNING_RATES = (
    LABEL,
    replace(
        RATE,
        figure=lambda row: {"rate": read(row, "learning_rate"), "is_best": read(row, "is_best")},
        show=lambda it, output: f"{it['rate']:g}{_BEST[output] if it['is_best'] else ''}",
    ),
    replace(_FINAL_LOSS, figure=_loss_at_rate),
    Column(
        key="ended_well",
        en="Runs that ended well",
        ja="正常終了",
        figure=lambda row: {"runs": read(row, "ok"), "of": read(row, "runs")},
        show=_show_part,
    ),
)

# answers

_FORMS = {
    "base": {"en": "base model", "ja": "ベースモデル"},
    "merged": {"en": "merged into the base", "ja": "ベースへマージ"},
    "adapters": {"en": "adapters beside the base", "ja": "アダプターを併用"},
    "exported": {"en": "exported model", "ja": "書き出したモデル"},
}
_FORM = Column(
    key="form",
    en="Form",
    ja="形",
    figure=lambda row: read(row, "form"),
    show=lambda form, output: _FORMS[form]["ja" if output == "ja" else "en"],
    is_text=True,
)


def _against_base(name: str) -> Column:
    return own(
        *(name, "× base [95 % interval]", "ベース比 [95 % 区間]", show_speedup),
        short="×",
        is_timed=True,
    )


_SPEED_OF_ANSWERS = (
    own(
        *("prefill_tokens_per_second", "Prefill, tokens/s", "Prefill (tokens/s)"),
        plain("{:,.1f}".format),
        short="Prefill/s",
        is_timed=True,
    ),
    _against_base("prefill_ratio"),
    own(
        *("decode_tokens_per_second", "Decode, tokens/s", "Decode (tokens/s)"),
        plain("{:,.1f}".format),
        short="Decode/s",
        is_timed=True,
    ),
    _against_base("decode_ratio"),
)
_SIZE_OF_ANSWERS = (
    own("parameters", "Parameters", "パラメータ", COUNT),
    own("width", "Width", "幅", COUNT),
    own("peak_memory_bytes", "Peak memory", "ピークメモリ", _BYTES),
    own(
        *("relative_difference", "Logits differ by", "logit の差"),
        plain("{:.1e}".format),
    ),
)
ANSWER_SCREENS = {
    "💬 Answers (tokens/s)": (_FORM, *_SPEED_OF_ANSWERS),
    "💬 Answers (size)": (_FORM, *_SIZE_OF_ANSWERS),
}
"""The terminal's of a benchmark with answers, by title; the labels come first."""

TABLES = {
    "parameters": Table(rows=itemgetter("parameters"), columns=_PARAMETERS),
    "across": ACROSS_TABLE,
    "harness": HARNESS_TABLE,
    "matching": Table(rows=itemgetter("matching"), columns=matching.COLUMNS),
    "bench_speed": Table(rows=itemgetter("bench"), columns=_BENCH_SPEED),
    "bench_steps": Table(
        rows=lambda data: [
            row for row in data["bench"] if not find_method(row["method"]).is_traditional
        ],
        columns=_BENCH_STEPS,
    ),
    "inference": Table(rows=itemgetter("inference"), columns=(LABEL, _FORM, *_SPEED_OF_ANSWERS)),
    "inference_size": Table(
        rows=itemgetter("inference"), columns=(LABEL, _FORM, *_SIZE_OF_ANSWERS)
    ),
    "speed": Table(rows=itemgetter("entries"), columns=_SPEED),
    "best_batch": Table(rows=itemgetter("best_batch"), columns=_BEST_BATCH),
    "bench_memory": Table(rows=itemgetter("bench"), columns=_BENCH_MEMORY),
    "bench_peaks": Table(rows=itemgetter("bench"), columns=_BENCH_PEAKS),
    "memory": Table(rows=itemgetter("entries"), columns=_MEMORY),
    "accuracy": Table(rows=itemgetter("entries"), columns=_ACCURACY),
    "scores": SCORE_TABLE,
    "learning_rates": Table(rows=_list_grid, columns=_LEARNING_RATES),
    **TUNE_TABLES,
}
"""The report's, by name, in its order."""
BENCH_SCREENS = {
    "📊 Parameter Count Comparison": Table(columns=(_TOTAL, TRAINABLE, _TRAINABLE_RATIO)),
    "📈 Parameter Reduction": Table(columns=(_TRAINABLE_REDUCTION,)),
    "⚡ Forward Pass Benchmark": Table(
        columns=(_FORWARD, _faster("forward"), _TRAIN_FORWARD, _faster("train_forward"))
    ),
    "⚙️  Backward Pass Benchmark": Table(
        columns=(_BACKWARD, _faster("backward"), _FASTER_BY_FLOPS, _OPTIMIZER)
    ),
    "⚙️  With Skip-Cache (later epochs)": Table(
        rows=lambda rows: [row for row in rows if row["cached_forward"]],
        columns=(
            *(_CACHED_FORWARD, _faster("cached_forward")),
            *(_CACHED_BACKWARD, _faster("cached_backward")),
        ),
    ),
    "💾 Memory Usage": Table(
        columns=(
            *(_BENCH_PEAK, _STEP_BYTES, _CACHED_STEP_BYTES),
            *(_BENCH_SAVED, _BENCH_CACHED_SAVED),
        )
    ),
}
"""The terminal's of a benchmark, by title, on its rows; the labels come first."""
COMPARE_SCREENS = {
    "Loss": (
        *(TRAINABLE, RATE, RUNS, _FINAL_LOSS, ratio("final_val_loss")),
        *(_REACHED, _FORGETTING),
    ),
    "Time": (
        *(TRAIN_SECONDS, ratio("train_seconds")),
        *(_REUSED_SECONDS, _REUSED_RATIO, _TO_TARGET),
    ),
    "Memory": (_PEAK, ratio("peak_memory_bytes"), _SAVED_BYTES, _CACHE_BYTES, _ADAPTER_BYTES),
}
"""The terminal's of a comparison."""
BEST_BATCH_SCREEN = (_MICRO_BATCH, TRAIN_SECONDS, ratio("train_seconds"), *_WHOLE_PEAK)
