"""The arithmetic of convolutions and inner products: tops, and gradients one by one.

Layers whose gradients are computed apart from autograd (`weight_gradients`), or in several ways of
which the fastest is found by trying, hand these around. Masks and biases' gradients are not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels

#: Windows of at most this size: the weight's gradient is computed as products of small matrices.
FEW = 64
#: Inner products with at most this many outputs have kernels of their own.
FEW_OUTPUTS = 32


class Product(Protocol):
    """A layer's arithmetic: the top from bottom x, weight w and bias b, and gradients."""

    def top(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor: ...

    def bottom_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor: ...

    def weight_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Linear:
    """x @ w^T, or x @ w if `transpose`."""

    transpose: bool

    def top(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.linear(x, w.t() if self.transpose else w, b)

    def bottom_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return self.below(gradient, w)

    def weight_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return self.along(gradient, x)

    def below(self, gradient: Tensor, w: Tensor) -> Tensor:
        """The gradient of x."""
        return gradient @ (w.t() if self.transpose else w)

    def along(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient of w."""
        rows, columns = gradient.flatten(0, -2), x.flatten(0, -2)
        return columns.t() @ rows if self.transpose else rows.t() @ columns


@dataclass(frozen=True)
class FewOutputs(Linear):
    """x @ w^T with few outputs, by kernels of our own."""

    def top(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        if not self._suit(x, w):
            return super().top(x, w, b)
        from caffe_dns.kernels import narrow

        return narrow.top(x, w, b)

    def bottom_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        if not self._suit(gradient, x, w):
            return super().bottom_gradient(gradient, x, w)
        from caffe_dns.kernels import narrow

        return narrow.bottom_gradient(gradient, w)

    def _suit(self, *matrices: Tensor) -> bool:
        if self.transpose or not kernels.wanted(matrices[0].device):
            return False
        from caffe_dns.kernels import narrow

        return narrow.fits(*matrices)


@dataclass(frozen=True)
class Convolved:
    """A convolution over any number of spatial axes."""

    stride: Sequence[int]
    pad: Sequence[int]
    dilation: Sequence[int]
    group: int

    def has_own_gradients(self, x: Tensor) -> bool:
        """Whether gradients come from `gradients` instead of autograd."""
        return False

    def top(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        axes = len(self.pad)
        top = torch.convolution(
            x, w, None, self.stride, self.pad, self.dilation, False, [0] * axes, self.group
        )
        return top if b is None else top.add_(b.view(-1, *[1] * axes))

    def bottom_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return self._backward(gradient, x, w, (True, False, False))[0]

    def weight_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        few = w[0].numel() <= FEW and w.dim() == 4 and self.group == 1 and set(self.dilation) == {1}
        if not few:
            return self._backward(gradient, x, w, (False, True, False))[1]
        # As matrix products, one per image: cuDNN is slow with few channels.
        (pad_h, pad_w), num = self.pad, len(x)
        windows = F.pad(x, (pad_w, pad_w, pad_h, pad_h)) if any(self.pad) else x
        for axis in (2, 3):
            windows = windows.unfold(axis, w.shape[axis], self.stride[axis - 2])
        columns = windows.permute(0, 2, 3, 1, 4, 5).reshape(num, -1, w[0].numel())
        rows = gradient.permute(0, 2, 3, 1).reshape(num, -1, len(w))
        return torch.bmm(rows.transpose(1, 2), columns).sum(0).view(w.shape)

    def gradients(
        self, gradient: Tensor, x: Tensor, w: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of x and w, if `wanted`, from that of the top."""
        below, along, _ = self._backward(gradient, x, w, (wanted[0], wanted[1], False))
        return below, along

    def _backward(
        self, gradient: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            gradient,
            x,
            w,
            None,
            self.stride,
            self.pad,
            self.dilation,
            False,
            [0] * len(self.pad),
            self.group,
            wanted,
        )
        return result


@dataclass(frozen=True)
class FewChannels(Convolved):
    """A convolution of few channels with stride 1, with our own kernels for its gradients."""

    def bottom_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        if not suit(gradient, x, w):
            return super().bottom_gradient(gradient, x, w)
        from caffe_dns.kernels import convolution

        pad_h, pad_w = self.pad
        return convolution.bottom_gradient(gradient, x, w, (pad_h, pad_w))

    def weight_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        if not suit(gradient, x, w):
            return super().weight_gradient(gradient, x, w)
        from caffe_dns.kernels import convolution

        pad_h, pad_w = self.pad
        return convolution.parameter_gradients(gradient, x, w, (pad_h, pad_w))[0]


class Produced(torch.autograd.Function):
    """The top of a convolution without bias, by `product`, whose `gradients` backward uses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, product: Convolved) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.product = product
        return product.top(x, w, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        below, along = ctx.product.gradients(gradients[0], x, w, ctx.needs_input_grad[:2])
        return below, along, None


def suit(*blobs: Tensor) -> bool:
    """Whether our own kernels should run on these images and weights of a convolution."""
    if not kernels.wanted(blobs[0].device):
        return False
    from caffe_dns.kernels import convolution

    return convolution.fits(*blobs)
