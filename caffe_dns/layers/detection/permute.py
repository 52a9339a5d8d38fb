"""Permute: reorders the axes of a blob."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caffe_dns.layers.base import Layer, Shape, layer_types


@layer_types.register("Permute")
class Permute(Layer):
    """The axes in the order given, the others behind them (`permute_layer.cpp`)."""

    keeps_type = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        axes = len(bottom_shapes[0])
        given = list(self.param.permute_param.order)
        wrong = [axis for axis in given if axis >= axes]
        if wrong:
            raise self.error(
                f"{wrong[0]} is not an axis of a blob with {axes} axes", "permute_param.order"
            )
        if len(set(given)) < len(given):
            raise self.error("names an axis twice", "permute_param.order")
        self.order = given + [axis for axis in range(axes) if axis not in given]

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        if len(bottom_shapes[0]) != len(self.order):
            raise self.error(
                f"the order is of {len(self.order)} axes, the bottom has {len(bottom_shapes[0])}",
                "bottom",
            )
        return [tuple(bottom_shapes[0][axis] for axis in self.order)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].permute(self.order).contiguous()
