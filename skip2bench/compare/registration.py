"""Writes down what a comparison will run and compare, before its first run."""

from collections.abc import Iterable, Mapping

from skip2bench.compare.folder import CompareFolder
from skip2bench.compare.matrix import find_baseline
from skip2bench.compare.plan import ComparisonPlan
from skip2bench.config.options import to_plain
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.record import walk
from skip2bench.io.whole import to_json, utc_now, write_json
from skip2bench.results.figures import FIGURES
from skip2bench.results.plain import DamagedFileError
from skip2bench.results.registration import (
    REGISTRATION_FILE,
    Analysis,
    RegisteredPlan,
    Registration,
    describe_target,
    hash_plan,
    read_ends,
    read_registration,
)
from skip2bench.results.run_records import SCHEMA_VERSION

_VERSIONS = ("skip2bench", "torch", "litgpt", "lightning", "python", "commit")
_MACHINE = ("platform", "processor", "cpu_count", "threads")


def describe_plan(
    plan: ComparisonPlan, keys: Mapping[str, str], *, is_open: bool
) -> RegisteredPlan:
    """What is decided by now.

    Args:
        plan: Of the comparison.
        keys: That of every cell, by name, as far as they are known.
        is_open: Others follow from what these come to.
    """
    config, environment = plan.config, plan.environment
    known = environment.model_dump(include={*_VERSIONS, *_MACHINE})
    gpu = environment.gpu
    baseline = find_baseline(config, plan.configurations)
    content = RegisteredPlan(
        config=to_plain(config),
        model=plan.training.model_name,
        checkpoint=environment.checkpoint,
        data=environment.data,
        versions={name: known.get(name) for name in _VERSIONS},
        machine={name: known.get(name) for name in _MACHINE} | {"gpu": gpu and gpu.name},
        cells={} if is_open else dict(keys),
        cells_follow=is_open,
        analysis=Analysis(
            baseline=baseline.name,
            target=describe_target(config.target_loss),
            configurations=tuple(
                one.name
                for one in plan.configurations
                if one is not baseline and one.best_of is None
            ),
            seeds=config.seeds,
            learning_rate="searched for with the first seed by the final validation loss"
            if any(one.searches_rate for one in plan.configurations)
            else "the lowest mean final validation loss over the seeds",
            interval="95 %, Student's t on the logarithms of ratios paired by seed; differences "
            "corrected by Holm over the configurations",
            figures=FIGURES,
        ),
    )
    # as the file has it, tuples and all, so that what is read back has the same hash
    return RegisteredPlan.model_validate_json(to_json(content))


def register(folder: CompareFolder, plan: RegisteredPlan) -> None:
    """Write the plan where none is, and let only the same go on where there is one.

    Raises:
        Skip2BenchError: another plan is registered, or there are runs already.
    """
    path = folder.path / REGISTRATION_FILE
    try:
        stored = read_registration(folder.path)
    except DamagedFileError as error:
        raise Skip2BenchError(
            f"{str(path)!r} cannot be read ({error}); bring it back, or choose another --out-dir"
        ) from error
    if stored is None:
        if read_ends(folder.path):
            raise Skip2BenchError(
                f"{str(folder.path)!r} holds runs already, and a plan is registered before the "
                "first one; choose another --out-dir, or leave --register out"
            )
        sha256 = hash_plan(plan)
        content = Registration(
            schema_version=SCHEMA_VERSION, registered_at=utc_now(), sha256=sha256, plan=plan
        )
        write_json(path, content)
        note(f"registered in {path}: sha256 {sha256}")
        return
    if hash_plan(stored.plan) != stored.sha256:
        raise Skip2BenchError(
            f"{str(path)!r} was changed: its plan is not that of its sha256; bring it back, or "
            "choose another --out-dir"
        )
    if stored.sha256 != hash_plan(plan):
        differs = ", ".join(_name_differences(plan, stored.plan))
        raise Skip2BenchError(
            f"{str(path)!r} registers another plan (other: {differs}); choose another --out-dir, "
            "or give what was registered"
        )
    note(f"registered at {stored.registered_at}: sha256 {stored.sha256}")


def _name_differences(plan: RegisteredPlan, stored: RegisteredPlan) -> Iterable[str]:
    """The first few places in which two plans differ."""
    own, others = (
        {".".join(map(str, keys)): value for keys, value in walk(it.to_plain()) if _is_leaf(value)}
        for it in (plan, stored)
    )
    differing = [name for name in {**others, **own} if own.get(name) != others.get(name)]
    return sorted(differing, key=lambda name: name.startswith("cells."))[:3]


def _is_leaf(value: object) -> bool:
    return not isinstance(value, dict | list | tuple)
