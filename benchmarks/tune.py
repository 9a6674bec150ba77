"""What many configurations in one pass cost, against as many runs and an epoch of LoRA.

    python benchmarks/tune.py --data FILE.json [--checkpoint-dir DIR] [--train-samples N] [--grid]

Sixteen configurations (four sets of blocks, two ranks, two learning rates) train a whole run side
by side from one cache. Beside them, in the same process and in rounds, single cached steps of the
same configurations as `train` makes them, and steps of LoRA. What whole runs would take is steps
times the median; the cache is built once, and once for each single run, as `train` does without
`--cache-dir`. With `--grid`, what `tune` chooses is set beside the best of all combinations, all of
them trained to the end (by the same sweep, whose losses are those of runs alone).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from lightning.fabric import Fabric

from skip2bench.cache.loss import ServedLoss, portion_rows
from skip2bench.cache.portions import PortionSource, make_passes
from skip2bench.config.blocks import parse_blocks
from skip2bench.config.train import make_train_config
from skip2bench.config.tune import TuneConfig
from skip2bench.io.console import note
from skip2bench.machine.clock import Clock, time_call
from skip2bench.machine.signals import StopRequest
from skip2bench.models.base import load_checkpoint
from skip2bench.models.methods import build_model, resolve_method
from skip2bench.models.optimizer import build_optimizer
from skip2bench.models.skip import SkipGPT, SkipSettings
from skip2bench.sweep.folds import count_flops
from skip2bench.train.objective import TokenObjective
from skip2bench.train.plan import TrainingPlan, plan_training
from skip2bench.tune import explore
from skip2bench.tune.ground import Ground, lay_ground
from skip2bench.tune.run import run_tune

BLOCKS = ("fast", "balanced", "last:8", "even:8")
RANKS = (8, 16)
RATES = (3e-3, 1e-2)


def lay(options: argparse.Namespace, folder: Path) -> Ground:
    """The model and the cache of all blocks that are read."""
    plan = plan_training(make_train_config(list_values(options) | {"blocks": "all"}))
    n_layer = plan.model_config.n_layer
    read = sorted({block for text in BLOCKS for block in parse_blocks(text, n_layer)})
    settings = resolve_method("skip2", ",".join(map(str, read)), plan.config, plan.model_config)
    plan = replace(plan, settings=settings)
    environment = plan.describe_environment(["benchmarks/tune.py"])
    return lay_ground(plan, folder, environment, StopRequest(), time.monotonic(), 16)


def list_values(options: argparse.Namespace) -> dict[str, Any]:
    """Of `train`, what holds for all."""
    return {
        "checkpoint_dir": options.checkpoint_dir,
        "data": options.data,
        "train_samples": options.train_samples,
        "val_samples": options.val_samples,
        "max_seq_length": options.max_seq_length,
        "mask_prompt": options.mask_prompt,
        "epochs": options.epochs,
        "domain_text": "none",
    }


class SingleRun:
    """Steps of one configuration from the same cache, made as `train` makes them."""

    def __init__(self, ground: Ground, settings: SkipSettings) -> None:
        """The model is the sweep's own, with adapters of this configuration."""
        plan = ground.plan
        trial = ground.start(settings, 3e-3)
        base = load_checkpoint(plan.base_folder, plan.device, torch.float32)
        method = replace(plan.settings, skip=settings)
        model = build_model(method, base, plan.device, plan.config.seed)
        assert isinstance(model, SkipGPT)
        model.adapters.relative_sizes = trial.adapters.relative_sizes
        model.release_backbone()
        stored = ground.caches.sides["train"]
        assert stored is not None
        columns = tuple(stored.layout.blocks.index(block) for block in model.feature_blocks)
        cache = replace(stored, columns=columns)
        fabric = Fabric(accelerator=plan.device.type, devices=1, precision=plan.precision)
        loss = ServedLoss(model, "head")
        layout = replace(stored.layout, blocks=model.feature_blocks)
        rows = portion_rows(model, layout, "head", plan.device)
        self._source = PortionSource(fabric, model, plan.data.train, cache, loss, rows)
        self._optimizer = build_optimizer(
            model.adapters.parameters(),
            plan.device,
            learning_rate=3e-3,
            weight_decay=0.01,
            betas=(0.9, 0.999),
        )
        self._ground, self._model, self._step, self._fabric = ground, model, 0, fabric

    def take_step(self) -> None:
        """Make the next step."""
        batches = self._ground.schedule.batches
        ids = batches[self._step % len(batches)]
        self._step += 1
        self._model.train()
        supervised = self._ground.plan.data.train.supervised_counts
        parts = self._source.split(ids)
        clock = Clock(self._ground.plan.device)
        scale = sum(supervised[i] for i in ids)
        make_passes(self._source.portions(parts), scale, clock.part, self._fabric.backward)
        self._optimizer.step()
        self._optimizer.zero_grad()


def lora_step(options: argparse.Namespace, plan: TrainingPlan) -> Callable[[list[int]], None]:
    """Makes steps of LoRA at rank 8 on given samples."""
    config = make_train_config(list_values(options) | {"method": "lora", "lora_r": 8})
    settings = resolve_method("lora", "", config, plan.model_config)
    base = load_checkpoint(plan.base_folder, plan.device, torch.float32)
    model = build_model(settings, base, plan.device, 1)
    fabric = Fabric(accelerator=plan.device.type, devices=1, precision=plan.precision)
    objective = TokenObjective(fabric, fabric.setup_module(model), plan.data, options.micro_batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(
        trained, plan.device, learning_rate=1e-3, weight_decay=0.01, betas=(0.9, 0.999)
    )
    clock, supervised = Clock(plan.device), plan.data.train.supervised_counts

    def step(ids: list[int]) -> None:
        model.train()
        scale = sum(supervised[i] for i in ids)
        make_passes(objective.portions(ids), scale, clock.part, fabric.backward)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Measure and print; the figures go to stdout as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint-dir", type=Path)
    parser.add_argument("--data", default="pydoc")
    parser.add_argument("--train-samples", type=int, default=1000)
    parser.add_argument("--val-samples", type=int, default=60)
    parser.add_argument("--max-seq-length", type=int, default=512)
    parser.add_argument("--mask-prompt", action="store_true")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--grid", action="store_true")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        if options.grid:
            figures = compare_with_grid(options, Path(folder))
        else:
            figures = measure(options, lay(options, Path(folder)))
    print(json.dumps(figures, indent=2))


def compare_with_grid(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The loss of what `tune` chooses, and the lowest of all combinations of its space."""
    values = {k: v for k, v in list_values(options).items() if v is not None}
    values["checkpoint_dir"] = values.pop("checkpoint_dir", None)
    common = {k: v for k, v in values.items() if v is not None}
    halved = run_tune(TuneConfig(finalists=0, train=common, out_dir=folder / "halved"))
    with patch.object(explore, "RUNGS", (1.0,)):
        whole = run_tune(
            TuneConfig(
                budget="100000", screening=False, finalists=0, train=common, out_dir=folder / "all"
            )
        )
    grid = [it for it in whole.found.configurations if it.origin in ("drawn", "guide")]
    chosen, best = halved.found.configurations[0], min(grid, key=lambda it: it.best_val_loss or 0)
    assert chosen.best_val_loss
    assert best.best_val_loss
    return {
        "chosen": chosen.name,
        "chosen_val_loss": chosen.best_val_loss,
        "configurations_of_tune": halved.configurations,
        "updates_of_tune": halved.steps_of_all,
        "best_of_the_grid": best.name,
        "best_val_loss": best.best_val_loss,
        "configurations_of_the_grid": len(grid),
        "updates_of_the_grid": whole.steps_of_all,
        "chosen_over_best": chosen.best_val_loss / best.best_val_loss,
    }


def measure(options: argparse.Namespace, ground: Ground) -> dict[str, Any]:
    """All figures."""
    plan, device = ground.plan, ground.plan.device
    shapes = [
        SkipSettings(
            blocks=parse_blocks(text, plan.model_config.n_layer), r=rank, alpha=16, dropout=0.05
        )
        for text in BLOCKS
        for rank in RANKS
    ]
    trials = [ground.start(shape, rate) for shape in shapes for rate in RATES]
    singles = [SingleRun(ground, shape) for shape in shapes]
    batches = [list(batch) for batch in ground.schedule.batches]
    lora = lora_step(options, plan)
    seconds: dict[str, list[float]] = {"sweep": [], "singles": [], "lora": []}
    ground.sweep.take_step(trials)
    for single in singles:
        single.take_step()
    lora(batches[0])
    for number in range(options.rounds):
        seconds["sweep"].append(time_call(lambda: ground.sweep.take_step(trials), device))
        each = [time_call(single.take_step, device) for single in singles]
        seconds["singles"].append(sum(each) / len(each))
        ids = batches[number % len(batches)]
        seconds["lora"].append(time_call(lambda ids=ids: lora(ids), device))
        note(f"round {number + 1}: " + ", ".join(f"{k} {v[-1]:.3f} s" for k, v in seconds.items()))
    return summarise(ground, trials, seconds)


def summarise(ground: Ground, trials: list[Any], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Whole runs from the medians of steps."""
    n, steps = len(trials), len(ground.schedule.batches)
    epoch_steps = steps / ground.plan.config.epochs
    sweep, single, lora = (statistics.median(seconds[k]) for k in ("sweep", "singles", "lora"))
    build = ground.clock.seconds["cache_build"]
    model, positions = ground.model, ground.sweep.positions_per_step
    d, vocabulary = model.config.n_embd, model.config.padded_vocab_size
    thin = sum(count_flops(model, trial.settings, positions) for trial in trials)
    by_head = sum(
        4 * d * vocabulary
        + 6 * t.settings.width * d
        + 4 * t.settings.r * len(t.settings.blocks) * d
        for t in trials
    )
    whole = build + steps * sweep
    return {
        "model": ground.plan.model_name,
        "configurations": n,
        "steps": steps,
        "supervised_positions_per_step": positions,
        "cache_build_seconds": build,
        "sweep_step_seconds": sweep,
        "single_step_seconds": single,
        "lora_step_seconds": lora,
        "whole_sweep_seconds": whole,
        "by_a_lora_epoch": whole / (epoch_steps * lora),
        "by_single_runs_that_build_their_caches": whole / (n * (build + steps * single)),
        "by_single_runs_from_one_cache": (steps * sweep) / (n * steps * single),
        "flops_of_the_sweep_by_single_steps": (2 * d * vocabulary + thin) / by_head,
        "threads": torch.get_num_threads(),
        "raw_seconds": seconds,
    }


if __name__ == "__main__":
    main()
