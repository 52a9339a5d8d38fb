"""The description of a mask that the kernels for renewing masks read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Masked:
    """A mask and what its renewal depends on: float32 tensors on one device.

    `weight` gives the weight, which may be a new tensor each time. With `moments`, [mu, sigma], the
    mask is renewed by magnitude and `setting` is the c_rate; else it is renewed by deviation, and
    `setting` the threshold. How many entries come back is added to `counter`, an int64 of 0
    dimensions. Masks of the same `layer` are renewed together.
    """

    weight: Callable[[], Tensor]
    mask: Tensor
    setting: float
    moments: Tensor | None
    counter: Tensor
    layer: int


def same_order(weight: Tensor, mask: Tensor) -> bool:
    """Whether the elements of both lie in memory in the same order, without gaps."""
    strides = zip(weight.shape, weight.stride(), mask.stride(), strict=True)
    return all(own == other for extent, own, other in strides if extent > 1)
