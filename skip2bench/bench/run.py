"""Forward, backward and memory micro-benchmarks of several configurations, interleaved in rounds.

Times come in rounds (`timing`): each measures every configuration before the next one starts, so
that a machine that drifts drifts for all of them. Compared are the medians of a round, pair by
pair. Memory comes from processes of their own (`memory`), FLOPs from the meta device (`workload`).
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config

from skip2bench.bench.inference import measure_inference
from skip2bench.bench.memory import MemoryRequest, measure_memory
from skip2bench.bench.summary import (
    FITS,
    compare_phases,
    find_misfit,
    flatten_entry,
    summarise_phases,
)
from skip2bench.bench.timing import Times, describe_use, measure_times
from skip2bench.bench.workload import count_workload_flops
from skip2bench.config.blocks import list_wanted
from skip2bench.config.commands import BenchConfig
from skip2bench.config.methods import METHODS
from skip2bench.config.options import to_plain
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note, warn
from skip2bench.io.text import check_folder
from skip2bench.io.whole import hash_file, write_csv
from skip2bench.machine.clock import clock_name
from skip2bench.machine.environment import choose_device, choose_precision, describe_environment
from skip2bench.machine.environment_record import CheckpointRecord, Environment
from skip2bench.machine.out_of_memory import DoesNotFitError
from skip2bench.machine.processor_use import ProcessorMeter
from skip2bench.machine.signals import interrupted_by_sigterm
from skip2bench.models.base import (
    check_checkpoint,
    config_by_name,
    find_checkpoint,
    load_config,
)
from skip2bench.models.folders import WEIGHTS_FILE
from skip2bench.models.methods import (
    MethodSettings,
    build_empty_model,
    count_parameters,
    resolve_method,
)
from skip2bench.models.weights import check_weights
from skip2bench.results.bench_records import (
    BenchConfiguration,
    BenchFigures,
    BenchResult,
    BenchSummary,
    FlopsFigures,
    MemoryFigures,
)
from skip2bench.results.disturbance import (
    describe_disturbed,
    find_disturbed,
    repeat_benchmark,
)
from skip2bench.results.run_folder import (
    INFERENCE_COLUMNS,
    MEASUREMENT_COLUMNS,
    open_run_folder,
    record_run,
)


def run_bench(config: BenchConfig, arguments: Sequence[str] = ()) -> BenchResult:
    """Measure, write the run folder, and return its summary.

    Args:
        config: What to measure.
        arguments: The command line, recorded so that the run can be repeated; a program has none.

    Raises:
        Skip2BenchError: bad input; nothing is written then.
    """
    started = time.monotonic()
    folder_of_model = find_checkpoint(config.model)
    if folder_of_model:
        check_checkpoint(folder_of_model)
    model_config = load_config(folder_of_model) if folder_of_model else config_by_name(config.model)
    if not 2 <= config.seq_length <= model_config.block_size:
        raise Skip2BenchError(
            f"seq_length is {config.seq_length}; give 2 to {model_config.block_size}, the context"
        )
    requests = list_configurations(config, model_config)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    check_folder("out_dir", config.out_dir)
    weights = folder_of_model / WEIGHTS_FILE if folder_of_model else None
    if weights:
        check_weights(weights, model_config)
    name = folder_of_model.name if folder_of_model else model_config.name

    checkpoint = CheckpointRecord(name=name, sha256=hash_file(weights) if weights else None)
    environment = Environment.of(describe_environment(device, arguments), checkpoint=checkpoint)
    known = BenchFigures(
        kind="bench",
        model=name,
        device=str(device),
        precision=precision,
        clock=clock_name(device),
        batch_size=config.batch_size,
        seq_length=config.seq_length,
        rounds=config.rounds,
        iterations=config.iterations,
        seed=config.seed,
        configurations=(),
    )
    with (
        interrupted_by_sigterm(),
        open_run_folder("bench", name, "bench", config.out_dir, force=config.force) as folder,
        record_run(
            folder, to_plain(config), environment, BenchSummary.begin(known), started
        ) as recording,
    ):
        entries, times = _measure(config, requests, model_config, device, precision)
        processor = times.processor
        recording.set(configurations=entries, processor=processor)
        write_csv(folder / "measurements.csv", MEASUREMENT_COLUMNS, times.rows)
        if config.inference:
            all_settings = [settings for _, _, settings in requests]
            meter = ProcessorMeter()
            answers, rows = measure_inference(
                config, all_settings, model_config, device, precision, meter
            )
            processor = processor | describe_use(meter, {"inference": ["inference"]})
            recording.set(inference=answers, processor=processor)
            write_csv(folder / "inference.csv", INFERENCE_COLUMNS, rows)
        _write_summary_csv(folder, entries)
        _check_anything_fits(entries)
    disturbed = find_disturbed(processor, environment.cpu_count)
    for line in describe_disturbed(disturbed, repeat_benchmark(environment.command)):
        warn(line)
    return BenchResult.of(recording.summary, folder=str(folder))


def list_configurations(
    config: BenchConfig, model: Config
) -> list[tuple[str, str, MethodSettings]]:
    """Method name, blocks as given, and settings of everything to measure, the baseline first."""
    wanted = [
        (name, blocks)
        for name in sorted(config.methods, key=list(METHODS).index)
        for blocks in list_wanted(METHODS[name], config.blocks, config.top_blocks)
    ]
    found: dict[str, tuple[str, str, MethodSettings]] = {}
    for name, blocks in wanted:
        settings = resolve_method(name, blocks, config, model)
        # presets may mean the same blocks on a small model
        found.setdefault(settings.slug, (name, blocks, settings))
    return list(found.values())


def _measure(
    config: BenchConfig,
    requests: list[tuple[str, str, MethodSettings]],
    model_config: Config,
    device: torch.device,
    precision: str,
) -> tuple[tuple[BenchConfiguration, ...], Times]:
    entries = []
    for name, blocks, settings in requests:
        where = settings.describe_blocks(model_config.n_layer)
        note(f"{settings.label}{where}: parameters, FLOPs, memory in a process of its own")
        request = MemoryRequest(
            config=config, method=name, blocks=blocks, threads=torch.get_num_threads()
        )
        shape = (config.batch_size, config.seq_length)
        flops = count_workload_flops(settings, model_config, shape, device, precision)
        entries.append(
            BenchConfiguration.of(
                _describe(settings, model_config),
                flops=FlopsFigures(**flops),
                memory=MemoryFigures(**measure_memory(request)),
            )
        )
    all_settings = [settings for _, _, settings in requests]
    misfits = {
        settings.slug: misfit
        for settings, entry in zip(all_settings, entries, strict=True)
        if entry.memory and (misfit := find_misfit(entry.memory))
    }
    to_time = [settings for settings in all_settings if settings.slug not in misfits]
    times = measure_times(config, to_time, device, precision)
    misfits |= times.misfits
    baseline = all_settings[0]
    measured = []
    for entry, settings in zip(entries, all_settings, strict=True):
        misfit = misfits.get(settings.slug, FITS)
        figures: dict[str, Any] = {"phases": summarise_phases(times.rows, settings)}
        if misfit["status"] == "oom":
            warn(f"{settings.label}: out of memory; it is an oom row, the others are measured")
        elif settings is not baseline and baseline.slug not in misfits:
            figures["ratios"] = compare_phases(times.rows, settings, baseline)
        measured.append(BenchConfiguration.of(entry, **misfit, **figures))
    return tuple(measured), times


def _describe(settings: MethodSettings, model_config: Config) -> BenchConfiguration:
    with torch.device("meta"):
        total, trainable = count_parameters(build_empty_model(settings, model_config))
    return BenchConfiguration(
        label=settings.label,
        method=settings.method.name,
        blocks=settings.blocks,
        target=settings.skip.target if settings.skip else None,
        rank=settings.rank,
        total_parameters=total,
        trainable_parameters=trainable,
        adapter_parameters=trainable,
        trainable_ratio=trainable / total,
    )


def _check_anything_fits(entries: Sequence[BenchConfiguration]) -> None:
    """Raise where memory ran out for every configuration, so that the run ends as oom."""
    if not all(entry.status == "oom" for entry in entries):
        return
    phase, size = entries[0].oom_phase or "an unknown phase", entries[0].requested_bytes
    error = DoesNotFitError(phase, size)
    raise Skip2BenchError(
        f"no configuration fits ({error}); use a smaller batch, shorter sequences or a smaller "
        "model"
    ) from error


def _write_summary_csv(folder: Path, entries: Sequence[BenchConfiguration]) -> None:
    rows = [flatten_entry(entry) for entry in entries]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(folder / "summary.csv", columns, rows)
