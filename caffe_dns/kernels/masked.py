"""The description of a mask that the kernels for renewing masks read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Masked:
    """A mask and the data for its renewal: float32 tensors on one device.

    `weight` returns the weight, which may be a new tensor each time. With `moments`, [mu, sigma],
    the mask is renewed by magnitude and `setting` is the c_rate; else it is renewed by deviation,
    and `setting` the threshold. The number of entries spliced back is added to `counter`, a 0-dim
    int64. Masks of the same `layer` are renewed together.
    """

    weight: Callable[[], Tensor]
    mask: Tensor
    setting: float
    moments: Tensor | None
    counter: Tensor
    layer: int


def same_order(weight: Tensor, mask: Tensor) -> bool:
    """Whether both have the same dense memory layout."""
    strides = zip(weight.shape, weight.stride(), mask.stride(), strict=True)
    return all(own == other for extent, own, other in strides if extent > 1)
