"""A depthwise convolution between two BatchNorms, in one pass with most of both.

MobileNets consist of them, and their time is that of the memory accesses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from caffe_dns import kernels
from caffe_dns.kernels.postponed import Postponed
from caffe_dns.layers.batch_norm import BatchNorm, Fused
from caffe_dns.layers.convolution import BaseConvolution

if TYPE_CHECKING:
    from caffe_dns.kernels.batch_norm import Normalization

#: Bottoms of this size fill a GPU. For smaller ones, a weight's gradient has its own stream.
LARGE = 1 << 21


def suits(layer: BaseConvolution) -> bool:
    """Whether the layer may be fused: a 3x3 depthwise convolution with a pad of 1."""
    plain = layer.convolved
    return (
        plain is not None
        and (tuple(layer.kernel), tuple(plain.pad)) == ((3, 3), (1, 1))
        and {*plain.dilation} == {1}
        and len({*plain.stride}) == 1
        and 1 < plain.group == layer.channels == layer.num_output
    )


def normalized_convolution(
    layer: BaseConvolution,
    batch_norm: BatchNorm,
    bottom: Tensor,
    left: Normalization,
    fused: Fused,
    postponed: Postponed,
) -> Tensor | None:
    """The BatchNorm of the convolution, with what is `fused`; None if that is not for the kernel.

    The bottom's own normalisation was `left` to it by `postponed`.
    """
    plain = layer.convolved
    if plain is None or not batch_norm.wants_sums or bottom.numel() < LARGE:
        return None
    if layer.fixed_product is not None or not kernels.suit(bottom):
        return None
    from caffe_dns.kernels import depthwise

    weight, bias = layer.effective(layer.context.activations)
    if not depthwise.fits(bottom, weight, plain.stride[0]):
        return None
    fused = replace(fused, bias=bias)
    return batch_norm.normalize_convolved(bottom, weight, plain.stride[0], left, fused, postponed)
