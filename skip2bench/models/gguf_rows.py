"""Order of rows in GGUF's Llama, whose rotation turns neighbouring rows of a head together.

Hugging Face and LitGPT turn row i with row i + size / 2.
"""

from torch import Tensor


def split_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows (heads · size, ...) of a GGUF as LitGPT orders them."""
    return weight.view(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def interleave_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows (heads · size, ...) of LitGPT as GGUF orders them."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
