"""Layers that normalise by neighbouring entries or by the channel: LRN and MVN."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.layers.base import ALL_BOTTOMS, Layer, SameShape, Shape, layer_types
from caffe_dns.proto.caffe_pb2 import LRNParameter


@layer_types.register("LRN")
class LRN(SameShape):
    """Local response normalisation: x * (k + alpha * mean of squares nearby)^-beta.

    Nearby are `local_size` channels, or a square of that side within the channel, where k is 1
    whatever the definition says (`lrn_layer.cpp`). Zeros lie beyond the border. The bottom is
    N x C x H x W.
    """

    needs_numbers = ALL_BOTTOMS

    keeps_type = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.lrn_param
        if settings.local_size % 2 != 1:
            raise self.error(
                f"is {settings.local_size}; an odd number would be right", "lrn_param.local_size"
            )
        self.size = settings.local_size
        self.within = settings.norm_region == LRNParameter.WITHIN_CHANNEL
        self.alpha, self.beta = settings.alpha, settings.beta
        self.k = 1.0 if self.within else settings.k

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        if len(bottom_shapes[0]) != 4:
            raise self.error(
                "the bottom needs 4 axes (num, channels, height, width), "
                f"it has {len(bottom_shapes[0])}",
                "bottom",
            )
        return super().reshape(bottom_shapes)

    def forward(self, *bottoms: Tensor) -> Tensor:
        if not self.within and kernels.suit(bottoms[0]):
            from caffe_dns.kernels.lrn import LARGEST_SIZE, NormalizedAcross

            if self.size <= LARGEST_SIZE:
                share = self.alpha / self.size
                result: Tensor = NormalizedAcross.apply(
                    bottoms[0], self.size, share, self.beta, self.k
                )
                return result
        return self._normalize_in_torch(bottoms[0])

    def _normalize_in_torch(self, values: Tensor) -> Tensor:
        # In bfloat16, 1 plus a small number is 1.
        bottom = values.float() if self.context.activations is not None else values
        squares = bottom.square()
        if self.within:
            size = self._reaching(max(squares.shape[2:]))
            sums = F.avg_pool2d(squares, size, 1, size // 2, divisor_override=1)
            share = self.alpha / self.size**2
        else:
            size = self._reaching(squares.shape[1])
            on_cpu = squares.device.type == "cpu"
            sums = (add_neighbours if on_cpu else pool_neighbours)(squares, size)
            share = self.alpha / self.size
        top = bottom * sums.mul_(share).add_(self.k).pow(-self.beta)
        return top.to(values.dtype)

    def _reaching(self, extent: int) -> int:
        """The size, or what reaches all of such an extent from everywhere: the rest is zeros."""
        return min(self.size, max(2 * extent - 1, 1))


def add_neighbours(values: Tensor, size: int) -> Tensor:
    """Sums of `size` neighbouring channels, zeros beyond the first and the last.

    The way for the CPU, where additions are several times faster than PyTorch's pooling.
    """
    reach, channels = size // 2, values.shape[1]
    padded = F.pad(values, (0, 0, 0, 0, reach, reach))
    return reduce(torch.add, (padded.narrow(1, first, channels) for first in range(size)))


def pool_neighbours(values: Tensor, size: int) -> Tensor:
    """The same as `add_neighbours`, in one pass over memory; the way for GPUs.

    The spatial axes are made one, so that 2-D pooling does it, without a copy in both memory
    formats.
    """
    num, channels, height, width = values.shape
    reach = size // 2
    if values.is_contiguous():
        planes = values.view(num, 1, channels, height * width)
        sums = F.avg_pool2d(planes, (size, 1), 1, (reach, 0), divisor_override=1)
        return sums.view(values.shape)
    planes = values.permute(0, 2, 3, 1).reshape(num, 1, height * width, channels)
    sums = F.avg_pool2d(planes, (1, size), 1, (0, reach), divisor_override=1)
    return sums.view(num, height, width, channels).permute(0, 3, 1, 2)


class _Standardize(torch.autograd.Function):
    """Rows with their mean taken off, over their standard deviation plus eps; rows are R x D.

    Hand-written because Caffe's gradient is as if eps were 0 but in the last division, which keeps
    it finite for rows of equal numbers (`MVNLayer::Backward_cpu`).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, eps: float) -> Tensor:
        centred = rows - rows.mean(1, keepdim=True)
        scale = centred.square().mean(1, keepdim=True).sqrt_().add_(eps)
        top = centred / scale
        ctx.save_for_backward(top, scale)
        return top

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        top, scale = ctx.saved_tensors
        along = (gradient * top).mean(1, keepdim=True)
        return (gradient - gradient.mean(1, keepdim=True) - top * along) / scale, None


@layer_types.register("MVN")
class MVN(Layer):
    """Zero mean and, by default, unit variance for each channel or each example (`mvn_layer.cpp`).

    Bottom with up to 4 axes; the top always has 4, with extents of 1 at the end.
    """

    needs_numbers = ALL_BOTTOMS

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        if len(shape) > 4:
            raise self.error(f"the bottom may have up to 4 axes, it has {len(shape)}", "bottom")
        return [(*shape, 1, 1, 1, 1)[:4]]

    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom, settings = bottoms[0], self.param.mvn_param
        shape = (*bottom.shape, 1, 1, 1, 1)[:4]
        examples = shape[0] if settings.across_channels else shape[0] * shape[1]
        rows = bottom.reshape(examples, -1)
        if settings.normalize_variance:
            rows = _Standardize.apply(rows, settings.eps)
        else:
            rows = rows - rows.mean(1, keepdim=True)
        return rows.view(shape)
