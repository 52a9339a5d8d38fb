"""A convolution fused with the maximum pooling after it on a CPU, in training.

For windows of 2 x 2, the maxima are taken before the convolution's top is written
(`kernels.on_cpu.maxima`); backward multiplies only what receives a gradient from the pooling
(`kernels.on_cpu.from_maxima`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.kernels import on_cpu
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.pooling import Pooling, Window, max_of, max_pool

#: The most numbers in the convolution's weight, and the least in a row of its windows where the
#: bottom has a gradient, for which it takes less time than oneDNN; a small weight stays in a cache.
MOST_NUMBERS, LEAST_ROW = 1 << 16, 64
#: The least numbers of the top for each that a maximum is taken from.
LEAST_SHARE = 4


class SparseGradients(torch.autograd.Function):
    """The maxima of a convolution's top, after a bias and perhaps a ReLU."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        layer: BaseConvolution,
        window: Window,
        relu: bool,
    ) -> Tensor:
        from caffe_dns.kernels.on_cpu import from_maxima, maxima

        stride = layer.stride[0], layer.stride[1]
        size = layer.output_extent(x.shape[2], 0), layer.output_extent(x.shape[3], 1)
        if window.kernel == window.stride == maxima.WINDOW and window.ceil:
            top, places = maxima.maxima(x, w, b, stride, size)
            if relu:
                top.relu_()
        else:
            whole = layer.convolve(x, w, b)
            top, found = max_pool(whole.relu_() if relu else whole, window)
            places = from_maxima.places_of(found, x.shape, stride, size[1])
        ctx.save_for_backward(x, w, places, *([top] if relu else []))
        return top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from caffe_dns.kernels.on_cpu import from_maxima

        (gradient,), (x, w, places, *rectified) = gradients, ctx.saved_tensors
        if rectified:
            gradient = gradient * (rectified[0] > 0)
        wanted = ctx.needs_input_grad
        below, along, of_bias = from_maxima.gradients(gradient, places, x, w, below=wanted[0])
        return below, along, of_bias if wanted[2] else None, None, None, None


def pays(layer: BaseConvolution, pooling: Pooling) -> bool:
    """Whether the two should be fused: if oneDNN takes longer."""
    if layer.context.device.type != "cpu" or layer.convolved is None or not pooling.is_max:
        return False
    window, weight = pooling.window((1, 1)), layer.blobs[0]
    plain = layer.group == 1 and {*layer.dilation} == {1} and not any((*layer.pad, *window.pad))
    fits = weight.numel() <= MOST_NUMBERS
    sparse = window.stride[0] * window.stride[1] >= LEAST_SHARE
    return plain and fits and sparse and layer.channels_last


def pool(layer: BaseConvolution, pooling: Pooling, bottom: Tensor, *, relu: bool) -> Tensor:
    """The pooling of the convolution's top, after a ReLU if asked for."""
    weight, bias = layer.effective(layer.context.activations)
    size = (layer.output_extent(bottom.shape[2], 0), layer.output_extent(bottom.shape[3], 1))
    window = pooling.window(size)
    learns = torch.is_grad_enabled() and weight.requires_grad
    plain = weight.dtype == torch.float32 and layer.deferring(len(bottom)) is None
    plain = plain and not layer.outreaches(bottom)
    pays = not bottom.requires_grad or layer.channels * layer.kernel[-1] >= LEAST_ROW
    # Otherwise a window may have no maximum in the plane.
    inside = window.suits_torch(size)
    if learns and plain and pays and inside and on_cpu.works() and _counts(bottom, size):
        bottom = bottom.float().contiguous(memory_format=torch.channels_last)
        # A weight shared with another layer may have another layout.
        weight = weight.contiguous(memory_format=torch.channels_last)
        top: Tensor = SparseGradients.apply(bottom, weight, bias, layer, window, relu)
        return top
    whole = layer.apply_to(bottom, weight, bias)
    return max_of(F.relu_(whole) if relu else whole, window)


def _counts(bottom: Tensor, size: tuple[int, int]) -> bool:
    """Whether the kernels can index this bottom, and a plane of the top."""
    from caffe_dns.kernels.on_cpu.from_maxima import MOST, MOST_IN_PLANE

    return bottom.numel() < MOST and size[0] * size[1] < MOST_IN_PLANE
