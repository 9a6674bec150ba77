"""What a run's files say of its ranks, and the check that there is work for each of them."""

from typing import Any

from torch import nn

from skip2bench.config import TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.ranks import Ranks, step_bytes
from skip2bench.training_plan import TrainingPlan


def check_shares(plan: TrainingPlan, n_ranks: int) -> None:
    """Check that no rank would be idle in every step.

    Raises:
        Skip2BenchError: there are more ranks than training samples, or than a step has.
    """
    samples, batch = len(plan.data.train), plan.config.global_batch_size
    if n_ranks > samples:
        raise Skip2BenchError(
            f"{n_ranks} ranks share {samples} training samples; lower --devices or --num-nodes"
        )
    if n_ranks > batch:
        raise Skip2BenchError(
            f"{n_ranks} ranks share a global batch of {batch} samples; raise "
            "--global-batch-size, or lower --devices or --num-nodes"
        )


def describe_ranks(
    environment: dict[str, Any], config: TrainConfig, ranks: Ranks
) -> dict[str, Any]:
    """`environment` with the ranks in it, where there are several."""
    if ranks.is_alone:
        return environment
    return environment | {"ranks": ranks.size, "nodes": config.num_nodes}


def describe_communication(config: TrainConfig, ranks: Ranks, model: nn.Module) -> dict[str, Any]:
    """What `summary.json` says of a run's ranks.

    `communication_bytes_per_step` are what each rank gives to the collective of a step: gradients
    of all that trains, in float32, the loss, and the wish to stop. With fsdp, the weights that
    travel in forward passes come on top, and are not in it.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    strategy = "ddp" if config.strategy == "auto" else config.strategy
    return {
        "world_size": ranks.size,
        "strategy": "single" if ranks.is_alone else strategy,
        "communication_bytes_per_step": step_bytes(trained, ranks.size),
    }
