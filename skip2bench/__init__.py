"""Skip2-LoRA for language models: a reference implementation and an honest measurement of it.

The names below are for notebooks and programs; each is loaded when it is first used, so that
`import skip2bench` brings no torch:

    from skip2bench import TrainConfig, load_skip_model, run_training

    summary = run_training(TrainConfig(method="skip2", blocks="0,1,2,3", epochs=3))
    model = load_skip_model(Path(summary.folder) / "final")
"""

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skip2bench.bench.run import run_bench as run_bench
    from skip2bench.compare.across import run_across as run_across
    from skip2bench.compare.run import run_comparison as run_comparison
    from skip2bench.config.commands import BenchConfig as BenchConfig
    from skip2bench.config.commands import DoctorConfig as DoctorConfig
    from skip2bench.config.commands import ReportConfig as ReportConfig
    from skip2bench.config.compare import CompareConfig as CompareConfig
    from skip2bench.config.compare import load_compare_config as load_compare_config
    from skip2bench.config.load import load_train_config as load_train_config
    from skip2bench.config.train import TrainConfig as TrainConfig
    from skip2bench.config.tune import TuneConfig as TuneConfig
    from skip2bench.config.tune import load_tune_config as load_tune_config
    from skip2bench.doctor.run import run_doctor as run_doctor
    from skip2bench.errors import Skip2BenchError as Skip2BenchError
    from skip2bench.export.run import run_export as run_export
    from skip2bench.models.adapters import load_skip_model as load_skip_model
    from skip2bench.models.skip import SkipGPT as SkipGPT
    from skip2bench.models.skip import SkipSettings as SkipSettings
    from skip2bench.report.run import render_report as render_report
    from skip2bench.train.run import run_training as run_training
    from skip2bench.tune.run import run_tune as run_tune

__version__ = "0.1.0"
STARTED = time.monotonic()
"""When this process began to load the package, which is before all that takes long to load."""

_HOMES = {
    "BenchConfig": "config.commands",
    "CompareConfig": "config.compare",
    "DoctorConfig": "config.commands",
    "ReportConfig": "config.commands",
    "Skip2BenchError": "errors",
    "SkipGPT": "models.skip",
    "SkipSettings": "models.skip",
    "TrainConfig": "config.train",
    "TuneConfig": "config.tune",
    "load_compare_config": "config.compare",
    "load_skip_model": "models.adapters",
    "load_train_config": "config.load",
    "load_tune_config": "config.tune",
    "render_report": "report.run",
    "run_across": "compare.across",
    "run_bench": "bench.run",
    "run_comparison": "compare.run",
    "run_doctor": "doctor.run",
    "run_export": "export.run",
    "run_training": "train.run",
    "run_tune": "tune.run",
}
"""Public names and the modules that define them."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'skip2bench' has no attribute {name!r}")
    return getattr(import_module(f"skip2bench.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *_HOMES))
