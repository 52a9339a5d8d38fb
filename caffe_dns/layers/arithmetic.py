"""Layers that add, multiply, sum up, repeat or pick entries of their bottoms.

Layers that map each entry separately are in `neuron`; those that only cut, join and rename axes are
in `shape`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.layers.base import Layer, SameShape, Shape, layer_types
from caffe_dns.layers.checks import check_indices
from caffe_dns.proto.caffe_pb2 import (
    BiasParameter,
    EltwiseParameter,
    FillerParameter,
    ReductionParameter,
    ScaleParameter,
)


class Broadcast(SameShape):
    """A layer with an operand that lies along some axes of the first bottom.

    It is repeated over the others. It is the second bottom, or else a blob with the extents of
    `num_axes` axes from `axis` on.
    """

    bottoms = (1, 2)

    def blob_shape(
        self, bottom: Shape, settings: ScaleParameter | BiasParameter, num_axes: int, place: str
    ) -> Shape:
        """The extents of `num_axes` axes of the bottom (-1: all) from the axis in `settings` on."""
        axis = self.axis(settings.axis, len(bottom), f"{place}.axis")
        end = len(bottom) if num_axes == -1 else axis + num_axes
        if not axis <= end <= len(bottom):
            raise self.error(
                f"is {num_axes}; 0 to {len(bottom) - axis}, or -1 for all, would be right with "
                f"axis {axis} of a bottom with {len(bottom)} axes",
                f"{place}.num_axes",
            )
        return tuple(bottom[axis:end])

    def check_operand(self, bottom: Shape, operand: Shape, axis: int, place: str) -> None:
        """Raise CaffeError when `operand` does not lie along the bottom's axes from `axis` on."""
        # A single number fits everywhere; Caffe ignores the axis then.
        start = self.axis(axis, len(bottom), f"{place}.axis") if operand else 0
        if tuple(bottom[start : start + len(operand)]) != tuple(operand):
            raise self.error(
                f"a blob of shape {tuple(operand)} does not fit the bottom's shape {tuple(bottom)} "
                f"from axis {start} on",
                f"{place}.axis",
            )


def along(operand: Tensor, axis: int, num_axes: int) -> Tensor:
    """`operand` as a view that broadcasts over the axes after those it lies along."""
    if operand.dim() == 0:
        return operand
    trailing = num_axes - axis % num_axes - operand.dim()
    return operand.reshape(operand.shape + (1,) * trailing)


@layer_types.register("Scale")
class Scale(Broadcast):
    """x * scale, or x * scale + bias with `bias_term` (`scale_layer.cpp`).

    blobs: the scale (1 without a filler) unless it is the second bottom, then the bias.
    """

    keeps_type = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.scale_param
        bottom = bottom_shapes[0]
        num_axes = settings.num_axes
        if len(bottom_shapes) == 2:
            self.check_operand(bottom, bottom_shapes[1], settings.axis, "scale_param")
            num_axes = len(bottom_shapes[1])
        else:
            filler = FillerParameter(type="constant", value=1)
            if settings.HasField("filler"):
                filler = settings.filler
            shape = self.blob_shape(bottom, settings, num_axes, "scale_param")
            self.add_parameter(shape, filler, "weight")
        if settings.bias_term:
            log.info(f"Creating layer {self.name}")  # Caffe's line for the Bias layer inside
            shape = self.blob_shape(bottom, settings, num_axes, "scale_param")
            self.add_parameter(shape, settings.bias_filler, "bias")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        axis = self.param.scale_param.axis
        for operand in (*bottom_shapes[1:], *(tuple(blob.shape) for blob in self.blobs)):
            self.check_operand(bottom_shapes[0], operand, axis, "scale_param")
        return super().reshape(bottom_shapes)

    def forward(self, *bottoms: Tensor) -> Tensor:
        axis, num_axes = self.param.scale_param.axis, bottoms[0].dim()
        scale, *bias = (
            along(operand.to(bottoms[0].dtype), axis, num_axes)
            for operand in (*bottoms[1:], *self.blobs)
        )
        if bias:
            return torch.addcmul(bias[0], bottoms[0], scale)
        return bottoms[0] * scale


@layer_types.register("Bias")
class Bias(Broadcast):
    """x + bias (`bias_layer.cpp`). blobs: the bias, unless it is the second bottom."""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.bias_param
        if len(bottom_shapes) == 1:
            shape = self.blob_shape(bottom_shapes[0], settings, settings.num_axes, "bias_param")
            self.add_parameter(shape, settings.filler, "bias")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        axis = self.param.bias_param.axis
        for operand in (*bottom_shapes[1:], *(tuple(blob.shape) for blob in self.blobs)):
            self.check_operand(bottom_shapes[0], operand, axis, "bias_param")
        return super().reshape(bottom_shapes)

    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom, bias = (*bottoms, *self.blobs)
        return bottom + along(bias, self.param.bias_param.axis, bottom.dim())


@layer_types.register("Eltwise")
class Eltwise(Layer):
    """Product, weighted sum or maximum of bottoms of one shape (`eltwise_layer.cpp`).

    The gradient of a product is always the product of the other bottoms, as with
    `stable_prod_grad: true`; the division that `false` asks for gives the same, or NaN at 0.
    """

    keeps_type = True

    bottoms = (2, None)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.eltwise_param
        given = len(settings.coeff)
        if given not in (0, len(bottom_shapes)):
            raise self.error(
                f"given {given} times; once for each of the {len(bottom_shapes)} bottoms would be "
                "right",
                "eltwise_param.coeff",
            )
        if given and settings.operation == EltwiseParameter.PROD:
            raise self.error("operation PROD takes no coefficients", "eltwise_param.coeff")
        self.operation = settings.operation
        self.coefficients = list(settings.coeff) or [1.0] * len(bottom_shapes)

    @property
    def is_plain_sum(self) -> bool:
        """Whether it only adds up its bottoms."""
        return self.operation == EltwiseParameter.SUM and set(self.coefficients) == {1.0}

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        first = tuple(bottom_shapes[0])
        for i, shape in enumerate(bottom_shapes):
            if tuple(shape) != first:
                raise self.error(
                    f"all bottoms must have one shape, but bottom 0 is {first} and "
                    f"bottom {i} is {tuple(shape)}",
                    "bottom",
                )
        return [first]

    def forward(self, *bottoms: Tensor) -> Tensor:
        if self.operation == EltwiseParameter.SUM:
            return self._sum(bottoms)
        top = bottoms[0]
        if self.operation == EltwiseParameter.PROD:
            for bottom in bottoms[1:]:
                top = top * bottom
            return top
        # Not torch.maximum, which halves the gradient of a tie. In Caffe the second bottom wins
        # against the first, and those after them must be larger.
        top = torch.where(bottoms[0] > bottoms[1], bottoms[0], bottoms[1])
        for bottom in bottoms[2:]:
            top = torch.where(bottom > top, bottom, top)
        return top

    def _sum(self, bottoms: Sequence[Tensor]) -> Tensor:
        first = self.coefficients[0]
        top = bottoms[0] if first == 1 else bottoms[0] * first
        for bottom, coefficient in zip(bottoms[1:], self.coefficients[1:], strict=True):
            top = torch.add(top, bottom, alpha=coefficient)
        return top


Dims = tuple[int, ...]

_REDUCE: dict[int, Callable[[Tensor, Dims], Tensor]] = {
    ReductionParameter.SUM: lambda values, dims: values.sum(dims),
    ReductionParameter.ASUM: lambda values, dims: values.abs().sum(dims),
    ReductionParameter.SUMSQ: lambda values, dims: values.square().sum(dims),
    ReductionParameter.MEAN: lambda values, dims: values.mean(dims),
}


@layer_types.register("Reduction")
class Reduction(Layer):
    """coeff * the sum, sum of absolute values or squares, or mean, over all axes from `axis` on.

    The top keeps the axes before it (`reduction_layer.cpp`).
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.coefficient = self.param.reduction_param.coeff
        self.reduce = _REDUCE[self.param.reduction_param.operation]

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [tuple(bottom_shapes[0][: self._first_axis(len(bottom_shapes[0]))])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        num_axes = bottoms[0].dim()
        top = self.reduce(bottoms[0], tuple(range(self._first_axis(num_axes), num_axes)))
        return top if self.coefficient == 1 else top * self.coefficient

    def _first_axis(self, num_axes: int) -> int:
        return self.axis(self.param.reduction_param.axis, num_axes, "reduction_param.axis")


@layer_types.register("Tile")
class Tile(Layer):
    """The bottom, repeated `tiles` times along an axis (`tile_layer.cpp`)."""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.tiles = self.param.tile_param.tiles
        if self.tiles < 1:
            raise self.error("must be given and positive", "tile_param.tiles")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        repeats = self._repeats(len(bottom_shapes[0]))
        return [tuple(a * b for a, b in zip(bottom_shapes[0], repeats, strict=True))]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].repeat(self._repeats(bottoms[0].dim()))

    def _repeats(self, num_axes: int) -> list[int]:
        repeats = [1] * num_axes
        repeats[self.axis(self.param.tile_param.axis, num_axes, "tile_param.axis")] = self.tiles
        return repeats


@layer_types.register("BatchReindex")
class BatchReindex(Layer):
    """The items of the first bottom that the second lists (`batch_reindex_layer.cpp`)."""

    bottoms = (2, 2)
    no_force_backward = (1,)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        data, indices = bottom_shapes
        if not data or len(indices) != 1:
            raise self.error(
                f"the data need at least 1 axis and the indices exactly 1, not {len(data)} and "
                f"{len(indices)}",
                "bottom",
            )
        return [(indices[0], *data[1:])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        indices = bottoms[1].long()
        check_indices(self, indices, len(bottoms[0]), "index")
        return bottoms[0].index_select(0, indices)
