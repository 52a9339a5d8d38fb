"""A 1x1 convolution whose top is summed up as it is computed, for the BatchNorm after it.

In channels_last it is a matrix product, for which there is a kernel on GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from caffe_dns import kernels
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.products import Convolved
from caffe_dns.layers.weight_gradients import LARGE

if TYPE_CHECKING:
    from caffe_dns.kernels.channel_statistics import Sums


def summed_convolution(
    layer: BaseConvolution, bottom: Tensor, product: Convolved | None = None
) -> tuple[Tensor, Tensor | None, Sums] | None:
    """The top without bias, the bias, and the top's sums; None if the kernel is not suitable.

    `product` may replace the layer's own arithmetic.
    """
    plain = product or layer.convolved
    if plain is None or not _is_product(layer, plain) or len(bottom) * layer.products < LARGE:
        return None
    if not kernels.suit(bottom) or layer.deferring(len(bottom)) is not None:
        return None
    from caffe_dns.kernels import pointwise
    from caffe_dns.kernels.channel_statistics import Sums

    if not pointwise.fits(bottom, layer.num_output):
        return None
    weight, bias = layer.effective(layer.context.activations)
    if weight.dtype != bottom.dtype:
        return None
    top, pivot, sums = pointwise.SummedProduct.apply(bottom, weight, plain.gradients)
    return top, bias, Sums(pivot, sums)


def _is_product(layer: BaseConvolution, plain: Convolved) -> bool:
    """Whether each pixel of the top depends on one pixel of the bottom."""
    return (
        layer.fixed_product is None
        and layer.num_spatial_axes == 2
        and {*layer.kernel, *plain.stride} == {1}
        and not any(plain.pad)
        and plain.group == 1
    )
