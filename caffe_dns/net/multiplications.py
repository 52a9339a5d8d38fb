"""Counts the multiply-accumulates (MACs) of a net's convolutions and inner products."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_dns.layers.base import Layer, Shape, count
from caffe_dns.layers.convolution import BaseConvolution, Deconvolution
from caffe_dns.layers.inner_product import BaseInnerProduct
from caffe_dns.net.net import Net


def uses(layer: Layer, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
    """How often each weight is multiplied in a forward pass of the whole batch."""
    if isinstance(layer, BaseConvolution):
        # A convolution applies its kernel at every place of the top, a deconvolution of the bottom.
        placed = bottoms if isinstance(layer, Deconvolution) else tops
        axis = layer.channel_axis
        return sum(count(shape[:axis]) * count(shape[axis + 1 :]) for shape in placed)
    if isinstance(layer, BaseInnerProduct):
        return count(bottoms[0][: layer.first_axis])
    return 0


def uses_by_layer(net: Net) -> dict[Layer, int]:
    """`uses` of the layers that multiply, for a batch with the shapes `blob_shapes`."""
    shapes = net.blob_shapes
    found = {
        step.layer: uses(
            step.layer, [shapes[b] for b in step.bottoms], [shapes[t] for t in step.tops]
        )
        for step in net.steps
    }
    return {layer: often for layer, often in found.items() if often}


def batch_size(net: Net) -> int:
    """The number of items in a batch: the first extent of the first blob that has axes."""
    for step in net.steps:
        if not step.bottoms and step.layer.type != "Parameter":
            shape = net.blob_shapes[step.tops[0]]
            return max(1, shape[0]) if shape else 1
    return 1
