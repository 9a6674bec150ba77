"""What PEFT's DoRA has beside LoRA: magnitudes that train, and passes that they need.

DoRA (arXiv:2402.09353, equation 5) computes with m · V' / ‖V'‖ in place of V' = V + s B A, row by
row: V (d_out, d_in) is the weight, m (d_out,) trains, and the norm is a constant to the gradient.
"""

from collections.abc import Iterator, Mapping

import torch
from litgpt.config import Config
from torch import Tensor

from skip2bench.models.methods import MethodSettings


def list_layers(settings: MethodSettings, model: Config) -> Iterator[tuple[int, int]]:
    """Inputs and outputs of every linear layer with LoRA, as PEFT sees them: one a projection."""
    lora = settings.lora or {}
    wide = model.n_head * model.head_size
    grouped = model.n_query_groups * model.head_size
    inner = model.intermediate_size or 0
    a_block = {
        "lora_query": [(model.n_embd, wide)],
        "lora_key": [(model.n_embd, grouped)],
        "lora_value": [(model.n_embd, grouped)],
        "lora_projection": [(wide, model.n_embd)],
        "lora_mlp": [(model.n_embd, inner), (model.n_embd, inner), (inner, model.n_embd)],
    }
    for name, shapes in a_block.items():
        yield from shapes * model.n_layer if lora[name] else ()
    if lora["lora_head"]:
        yield model.n_embd, model.padded_vocab_size


def count_magnitudes(settings: MethodSettings, model: Config) -> int:
    """Numbers of all magnitudes: one a row of every weight with LoRA."""
    return sum(d_out for _, d_out in list_layers(settings, model))


def count_extra_flops(
    settings: MethodSettings, model: Config, tokens: int, samples_a_pass: int
) -> dict[str, int]:
    """FLOPs of a training sample that LoRA does not have.

    A pass multiplies B and A out, through the identity of d_in, and takes the norms of V'. With
    dropout the weight is applied to the dropped input once more, and backward goes through that.

    Args:
        settings: Of LoRA.
        model: The base.
        tokens: Of the sample.
        samples_a_pass: The micro-batch, which shares what a pass needs.

    Returns:
        `train_forward_flops` and `backward_flops`.
    """
    rank = settings.rank or 0
    forward = backward = 0
    for d_in, d_out in list_layers(settings, model):
        norms = 2 * rank * d_in * (d_in + d_out) + 4 * d_in * d_out
        again = 2 * tokens * d_in * d_out if (settings.lora or {}).get("lora_dropout") else 0
        forward += norms // samples_a_pass + again
        backward += again
    return {"train_forward_flops": forward, "backward_flops": backward}


def row_factors(
    weight: Tensor, adapter: Mapping[str, Tensor], magnitude: Tensor, scaling: float
) -> Tensor:
    """Of each row (d_out,) m / ‖V + s B A‖: what LoRA's B and the weight are multiplied by.

    Args:
        weight: V (d_out, d_in).
        adapter: `A` (r, d_in) and `B` (d_out, r).
        magnitude: m (d_out,).
        scaling: s.
    """
    whole = weight.float() + scaling * (adapter["B"].float() @ adapter["A"].float())
    norms: Tensor = torch.linalg.norm(whole, dim=1)
    return magnitude.float() / norms
