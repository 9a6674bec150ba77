"""Checkpoints that other releases of LitGPT have written, brought to the one that is installed.

Names and keys have changed since 0.4; where their meaning is known they are mapped, in one place,
so that every command and method sees the same model.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from litgpt.config import Config
from litgpt.scripts.convert_hf_checkpoint import qkv_reassemble
from torch import Tensor

_KNOWN = frozenset(item.name for item in fields(Config) if item.init)
_RENAMED = {
    "_norm_class": "norm_class_name",
    "_mlp_class": "mlp_class_name",
    "condense_ratio": "rope_condense_ratio",
}
_WITHOUT_MEANING = ("org", "sliding_window_layer_stride")
"""Keys that say nothing of the model that others do not say."""
_PLACING = "sliding_window_layer_placing"
_STRIDES = {"all": 1, "interleaved": 2}
"""Every how manieth block has the window, by what 0.4.13 to 0.5.7 wrote."""
_OLD_ATTENTION, _ATTENTION = ".attn.attn.", ".attn.qkv."


def is_older(plain: Mapping[str, Any]) -> bool:
    """True for a configuration with keys that this release does not have."""
    return not plain.keys() <= _KNOWN


def bring_config(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `model_config.yaml` as this release has it.

    Raises:
        ValueError: a key is not known here, and what it says would be lost.
    """
    found = {_RENAMED.get(key, key): value for key, value in plain.items()}
    placing = found.pop(_PLACING, None)
    if placing is not None:
        stride = _STRIDES.get(placing, placing)
        if not isinstance(stride, int) or stride < 1:
            raise ValueError(f"made by an older LitGPT: {_PLACING} is {placing!r}")
        if stride > 1:
            n_layer = int(found["n_layer"])
            found["sliding_window_indices"] = [int(i % stride == 0) for i in range(n_layer)]
    for key in _WITHOUT_MEANING:
        found.pop(key, None)
    unknown = {key: value for key, value in found.items() if key not in _KNOWN}
    for key, value in unknown.items():
        if value not in (None, False):
            raise ValueError(f"made by another LitGPT: {key} is {value!r}, which has no place here")
        del found[key]
    return found


def bring_weights(weights: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """A state dict by the names that this release has; tensors that need no change are the same.

    Until 0.5.4 queries, keys and values stood group by group under `attn.attn`.
    """
    if not any(_OLD_ATTENTION in name for name in weights):
        return dict(weights)
    return {
        name.replace(_OLD_ATTENTION, _ATTENTION): qkv_reassemble(value, config)
        if _OLD_ATTENTION in name
        else value
        for name, value in weights.items()
    }
