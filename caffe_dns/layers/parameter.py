"""The Parameter layer: a learnable blob that other layers read like any bottom."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caffe_dns.layers.base import Layer, Shape, layer_types


@layer_types.register("Parameter")
class Parameter(Layer):
    """Its one blob, of the shape in `parameter_param`, zeros at first (`parameter_layer.hpp`).

    happynear's `blob_filler` gives other first values.
    """

    bottoms = (0, 0)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        shape = tuple(self.param.parameter_param.shape.dim)
        if any(extent < 0 for extent in shape):
            raise self.error(f"has a negative extent: {shape}", "parameter_param.shape")
        self.add_parameter(shape, self.param.parameter_param.blob_filler, "weight")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [tuple(self.param.parameter_param.shape.dim)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return self.blobs[0]
