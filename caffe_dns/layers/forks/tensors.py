"""Layers of Synopsys' fork that stand for operators of TensorFlow and ONNX."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caffe_dns.layers.base import Layer, Shape, layer_types


@layer_types.register("Squeeze")
class Squeeze(Layer):
    """Takes axes of extent 1 away: those of `squeeze_param.axis`, or all (`squeeze_layer.cpp`)."""

    keeps_type = True

    def axes(self, shape: Shape) -> list[int]:
        """The axes that go."""
        given = self.param.squeeze_param.axis
        if not given:
            return [axis for axis, extent in enumerate(shape) if extent == 1]
        axes = [self.axis(axis, len(shape), "squeeze_param.axis") for axis in given]
        for axis in axes:
            if shape[axis] != 1:
                raise self.error(
                    f"axis {axis} of {tuple(shape)} has an extent of {shape[axis]}; 1 would be "
                    "right",
                    "squeeze_param.axis",
                )
        return axes

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        gone = self.axes(shape)
        return [tuple(extent for axis, extent in enumerate(shape) if axis not in gone)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        (bottom,) = bottoms
        return bottom.reshape(self.reshape([tuple(bottom.shape)])[0])
