"""A strided convolution of few channels, computed as one of more channels with stride 1.

Tensor Cores need channels in multiples of eight; the first layer of most nets has three. Squares of
pixels as wide as the stride become channels, of image and weight alike. The sums are the same, in
another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels

Pair = tuple[int, int]
#: Channels are padded to multiples of this.
ALIGNMENT = 8
#: The most channels of an image for which this is faster.
FEW_CHANNELS = 4
#: How much memory folded images may take of that of the images to be kept for the gradient.
KEPT_SHARE = 0.6


@dataclass(frozen=True)
class StridedConvolution:
    """How to convolve images of `channels` channels; the pairs are (height, width) in pixels.

    The stride is the same for both axes.
    """

    channels: int
    kernel: Pair
    stride: int
    pad: Pair

    @property
    def pays(self) -> bool:
        """Whether it is faster."""
        return self.channels <= FEW_CHANNELS and 1 < self.stride <= min(self.kernel)

    @property
    def padded_channels(self) -> int:
        """The number of channels after padding with zeros for alignment."""
        channels = self.channels
        while channels * self.stride**2 % ALIGNMENT:
            channels += 1
        return channels

    @property
    def blocks(self) -> Pair:
        """The kernel's size, in squares."""
        return -(-self.kernel[0] // self.stride), -(-self.kernel[1] // self.stride)

    def convolve(self, images: Tensor, weight: Tensor) -> Tensor:
        """The same as `F.conv2d`, in the weight's type, channels innermost."""
        folded = self.fold_weight(weight)
        if images.requires_grad:
            return F.conv2d(self.fold_images(images, weight.dtype), folded)
        top: Tensor = _Folded.apply(images, folded, self)
        return top

    def fold_images(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Images as N x (padded channels * stride * stride) x rows x columns of squares."""
        size = tuple(
            (extent + 2 * pad - kernel) // self.stride + blocks
            for extent, pad, kernel, blocks in zip(
                images.shape[2:], self.pad, self.kernel, self.blocks, strict=True
            )
        )
        rows, columns = size
        if kernels.suit(images) and not images.requires_grad:
            from caffe_dns.kernels.space_to_depth import space_to_depth

            return space_to_depth(
                images, self.stride, self.pad, (rows, columns), self.padded_channels, dtype
            )
        after = [
            blocks * self.stride - extent - pad
            for blocks, extent, pad in zip(size, images.shape[2:], self.pad, strict=True)
        ]
        more = self.padded_channels - self.channels
        padded = F.pad(images.to(dtype), (self.pad[1], after[1], self.pad[0], after[0], 0, more))
        return _fold(padded, self.stride)

    def fold_weight(self, weight: Tensor) -> Tensor:
        """The weight for such images, with its kernel padded by zeros."""
        rows, columns = (
            blocks * self.stride - kernel
            for blocks, kernel in zip(self.blocks, self.kernel, strict=True)
        )
        if kernels.suit(weight):
            from caffe_dns.kernels.space_to_depth import FoldedWeight

            folded: Tensor = FoldedWeight.apply(
                weight, self.stride, self.blocks, self.padded_channels
            )
            return folded
        more = self.padded_channels - self.channels
        return _fold(F.pad(weight, (0, columns, 0, rows, 0, more)), self.stride)


class _Folded(torch.autograd.Function):
    """The convolution of images, which do not learn, with a weight that is folded already.

    For its gradient they are folded again where they are not small, as in half precision without
    channels of zeros: that takes less time than keeping them takes memory.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, strided: StridedConvolution) -> Tensor:
        folded = strided.fold_images(images, weight.dtype)
        ctx.keeps = folded.nbytes <= KEPT_SHARE * images.nbytes
        ctx.save_for_backward(folded if ctx.keeps else images, weight)
        ctx.strided = strided
        return F.conv2d(folded, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        images, weight = ctx.saved_tensors
        folded = images if ctx.keeps else ctx.strided.fold_images(images, weight.dtype)
        mask = (False, True, False)
        along: Tensor = torch.ops.aten.convolution_backward(
            gradients[0], folded, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, mask
        )[1]
        return None, along, None


def _fold(images: Tensor, side: int) -> Tensor:
    """N x C x H x W as N x (C * side * side) x (H / side) x (W / side), channels innermost."""
    num, channels, height, width = images.shape
    rows, columns = height // side, width // side
    squares = images.reshape(num, channels, rows, side, columns, side)
    folded = squares.permute(0, 1, 3, 5, 2, 4).reshape(num, -1, rows, columns)
    return folded.contiguous(memory_format=torch.channels_last)
