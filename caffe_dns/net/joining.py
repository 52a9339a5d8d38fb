"""Writes the bottoms of a Concat straight into its top, so that nothing has to be copied.

The layer that makes the first of them allocates memory for all. This is for channels-last blobs, in
which some of the channels are written as fast as all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from caffe_dns.net.wiring import Step

if TYPE_CHECKING:
    from caffe_dns.kernels.bias_relu import Place


@dataclass(frozen=True)
class Share:
    """Which channels of a Concat's top a blob has: from `start` on, of `channels`.

    `first` is the blob that has been made before all others, with the channel at which it starts;
    None if this is it.
    """

    channels: int
    start: int
    first: tuple[str, int] | None

    def place(self, like: Tensor, first: Tensor | None) -> Place | None:
        """The place for a blob that lies in memory like this one; None where there is none."""
        from caffe_dns.kernels.bias_relu import Place

        if not _has_channels_innermost(like):
            return None
        num, _, height, width = like.shape
        shape = (num, self.channels, height, width)
        if first is None or self.first is None:
            wide = torch.empty(
                shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
            )
        elif first.dtype == like.dtype and first.stride() == _strides(shape):
            begin = first.storage_offset() - self.first[1]
            wide = first.detach().as_strided(shape, _strides(shape), begin)
        else:
            return None
        return Place(wide, self.start)


@dataclass(frozen=True)
class Joined:
    """A Concat of blobs that have been made side by side."""

    concat: Step

    @property
    def steps(self) -> list[Step]:
        return [self.concat]

    @property
    def bottoms(self) -> list[str]:
        return self.concat.bottoms

    def run(self, *bottoms: Tensor) -> Sequence[Tensor]:
        if _are_side_by_side(bottoms):
            return (SideBySide.apply(*bottoms),)
        return (torch.cat(bottoms, 1),)


class SideBySide(torch.autograd.Function):
    """The blob of which these are all channels, in their order."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.widths = [part.shape[1] for part in parts]
        first = parts[0]
        num, _, height, width = first.shape
        shape = (num, sum(ctx.widths), height, width)
        return first.detach().as_strided(shape, first.stride(), first.storage_offset())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradients[0].split(ctx.widths, 1))


def shares(concat: Step, widths: Sequence[int], order: Sequence[int]) -> list[Share]:
    """What each bottom has of the top, if they have so many channels and are made in this order."""
    starts = [0, *accumulate(widths)]
    first = order.index(min(order))
    maker = (concat.bottoms[first], starts[first])
    return [
        Share(starts[-1], start, None if index == first else maker)
        for index, start in enumerate(starts[:-1])
    ]


def _has_channels_innermost(blob: Tensor) -> bool:
    return blob.dim() == 4 and blob.stride() == _strides(tuple(blob.shape))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a blob with its channels innermost."""
    _, channels, height, width = shape
    return (height * width * channels, 1, width * channels, channels)


def _are_side_by_side(parts: Sequence[Tensor]) -> bool:
    """Whether these are all channels of one blob in its memory, one after the other."""
    first = parts[0]
    if first.dim() != 4:
        return False
    num, _, height, width = first.shape
    strides = _strides((num, sum(part.shape[1] for part in parts), height, width))
    begin = first.data_ptr()
    for part in parts:
        if part.data_ptr() != begin or part.stride() != strides or part.dtype != first.dtype:
            return False
        begin += part.shape[1] * part.element_size()
    return True
