"""A small convolution fused with the maximum pooling after it, on a GPU.

In a net as small as LeNet, kernels wait for each other, and the blob between the two layers need
not be written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.pooling import Pair, Pooling, Window
from caffe_dns.layers.products import FewChannels, suit
from caffe_dns.layers.weight_gradients import SecondStream

#: Allowed numbers of pixels in a window: a tile has a power of two.
SIZES = (2, 4, 8, 16)


class PooledConvolution(torch.autograd.Function):
    """The maxima of a convolution's top, after a bias and perhaps a ReLU.

    `w` and `b` are made from the parameters `weight` and `bias`, whose gradients are computed on a
    second stream if there is one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        w: Tensor,
        b: Tensor | None,
        maxima: Maxima,
        stream: SecondStream | None,
    ) -> Tensor:
        top, winners = maxima.of(x, w, b)
        ctx.save_for_backward(x, w, winners)
        ctx.parameters, ctx.maxima, ctx.stream = (weight, bias), maxima, stream
        return top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from caffe_dns.kernels import convolution

        (x, w, winners), product = ctx.saved_tensors, ctx.maxima.product
        pad_h, pad_w = product.pad
        gradient = ctx.maxima.hand_down(gradients[0], winners)

        def of_parameters() -> tuple[Tensor, Tensor]:
            return convolution.parameter_gradients(gradient, x, w, (pad_h, pad_w))

        wanted, *learn = ctx.needs_input_grad[:3]
        along: tuple[Tensor | None, Tensor | None] = (None, None)
        if any(learn) and ctx.stream is not None:
            ctx.stream.compute_all(ctx.parameters, of_parameters, gradient, x, w)
        elif any(learn):
            along = of_parameters()
        below = product.bottom_gradient(gradient, x, w) if wanted else None
        return below, along[0], along[1] if ctx.parameters[1] is not None else None, *[None] * 4


@dataclass(frozen=True)
class Maxima:
    """A pooling of a convolution's top, of height and width `image`, perhaps after a ReLU."""

    product: FewChannels
    window: Window
    image: Pair
    relu: bool

    def of(self, x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
        """The maxima, and the index of each in its window."""
        from caffe_dns.kernels import convolution

        (pad_h, pad_w), size = self.product.pad, self.window.output_size(self.image)
        return convolution.maxima(x, w, b, (pad_h, pad_w), self.window.kernel, size, relu=self.relu)

    def hand_down(self, gradient: Tensor, winners: Tensor) -> Tensor:
        """The gradient of the convolution's top from that of the maxima."""
        from caffe_dns.kernels import max_pool

        gradient = gradient.contiguous(memory_format=torch.channels_last)
        window = (*self.window.kernel, *self.window.stride, *self.window.pad)
        return max_pool.hand_down(gradient, winners, (*winners.shape[:2], *self.image), window)


def pooled_convolution(
    layer: BaseConvolution, pooling: Pooling, bottom: Tensor, *, relu: bool
) -> Tensor | None:
    """The pooling of the convolution's top, after a ReLU if asked for.

    None if no fused kernel is suitable.
    """
    if not isinstance(layer.convolved, FewChannels) or not suit(bottom):
        return None
    if layer.outreaches(bottom):
        return None
    image = layer.output_extent(bottom.shape[2], 0), layer.output_extent(bottom.shape[3], 1)
    window = pooling.window(image)
    from caffe_dns.kernels.layout import LARGEST

    convolved = len(bottom) * layer.num_output * image[0] * image[1]
    if not _lie_side_by_side(window, image) or convolved > LARGEST:
        return None
    weight, bias = layer.effective(layer.context.activations)
    if not suit(weight):
        return None
    maxima = Maxima(layer.convolved, window, image, relu)
    if not torch.is_grad_enabled():
        return maxima.of(bottom, weight, bias)[0]
    stream = layer.deferring(bottom.shape[0])
    if not isinstance(stream, SecondStream):
        stream = None
    w, b = weight.detach(), None if bias is None else bias.detach()
    top: Tensor = PooledConvolution.apply(bottom, *layer.own(), w, b, maxima, stream)
    return top


def _lie_side_by_side(window: Window, image: Pair) -> bool:
    """Whether no two windows share a pixel, and none reaches beyond the image."""
    pixels = window.kernel[0] * window.kernel[1]
    return window.kernel == window.stride and pixels in SIZES and max(window.margins(image)) <= 0
