"""Makes one layer from its definition's text, for tests that need no net."""

from __future__ import annotations

from caffe_dns.layers import Context, Layer, layer_types
from caffe_dns.layers.base import Shape
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, LayerParameter
from caffe_dns.proto.text import parse_text


def make_layer(text: str, *bottom_shapes: Shape, train: bool = False) -> Layer:
    """The layer that `text` defines, set up for these bottoms, with the name `layer`."""
    param = parse_text(text, LayerParameter).message
    param.phase = TRAIN if train else TEST
    param.name = "layer"
    layer = layer_types[param.type](param, Context())
    layer.setup(bottom_shapes)
    return layer
