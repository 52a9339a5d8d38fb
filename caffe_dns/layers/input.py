"""Input: blobs that the caller of the net fills (`input_layer.cpp`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caffe_dns.layers.base import Layer, Shape, layer_types


@layer_types.register("Input")
class Input(Layer):
    """Tops of given shapes, which the net hands out itself."""

    bottoms = (0, 0)
    tops = (1, None)
    is_input = True

    #: The shapes of the tops; () where the definition gives none.
    shapes: list[Shape]

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        given = [tuple(shape.dim) for shape in self.param.input_param.shape]
        if len(given) not in (0, 1, self.num_tops):
            raise self.error(
                f"is given {len(given)} times for {self.num_tops} tops; "
                f"give it once, once for each top, or not at all",
                "input_param.shape",
            )
        for shape in given:
            if any(extent < 0 for extent in shape):
                raise self.error(f"has a negative extent in {shape}", "input_param.shape")
        self.shapes = given if len(given) == self.num_tops else (given or [()]) * self.num_tops

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return list(self.shapes)

    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        raise RuntimeError(f"layer '{self.name}': the caller of the net gives the inputs")
