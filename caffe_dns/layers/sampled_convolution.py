"""A convolution of single pixels with a stride, of a bottom that has none but those it looks at."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.products import Convolved, Produced


def stride_of(layer: BaseConvolution) -> int:
    """By what stride, both ways, it looks at single pixels of images; 1 if it looks at all."""
    plain = layer.convolved
    if plain is None or layer.num_spatial_axes != 2 or plain.group != 1:
        return 1
    alone = {*layer.kernel} == {1} and not any(plain.pad) and len({*plain.stride}) == 1
    return plain.stride[0] if alone and layer.strided is None else 1


def sampled(layer: BaseConvolution) -> Convolved:
    """Its arithmetic with such a bottom."""
    assert layer.convolved is not None
    return replace(layer.convolved, stride=(1, 1))


def sampled_convolution(layer: BaseConvolution, bottom: Tensor) -> tuple[Tensor, Tensor | None]:
    """The top of such a bottom before the bias is added, and the bias."""
    weight, bias = layer.effective(layer.context.activations)
    product = sampled(layer)
    bottom = bottom.to(weight.dtype)
    top = layer.apply_apart(product, bottom, weight, None)
    return Produced.apply(bottom, weight, product) if top is None else top, bias
