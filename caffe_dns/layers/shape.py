"""Layers that join, cut and renumber blobs without changing an entry.

Tops are views of the bottoms wherever torch can make one. Arithmetic is in `arithmetic`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from caffe_dns.layers.base import Layer, Shape, count, layer_types, shape_text
from caffe_dns.layers.checks import refuse_in_place
from caffe_dns.proto.caffe_pb2 import ConcatParameter, SliceParameter


def _axis_or_legacy(
    layer: Layer, settings: ConcatParameter | SliceParameter, legacy: str, num_axes: int, place: str
) -> int:
    """The axis in `settings`, given as `axis` or as the unsigned field of older files."""
    if not settings.HasField(legacy):
        return layer.axis(settings.axis, num_axes, f"{place}.axis")
    if settings.HasField("axis"):
        raise layer.error(f"give either axis or {legacy}, not both", f"{place}.axis")
    return layer.axis(getattr(settings, legacy), num_axes, f"{place}.{legacy}")


@layer_types.register("Concat")
class Concat(Layer):
    """The bottoms, one after the other along an axis (`concat_layer.cpp`)."""

    keeps_type = True

    bottoms = (1, None)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        first = tuple(bottom_shapes[0])
        axis = self.own_axis(len(first))
        for i, shape in enumerate(bottom_shapes):
            if len(shape) != len(first) or any(
                extent != shape[j] for j, extent in enumerate(first) if j != axis
            ):
                raise self.error(
                    f"all bottoms must have the same extents except on axis {axis}; bottom 0 is "
                    f"{first}, bottom {i} {tuple(shape)}",
                    "bottom",
                )
        total = sum(shape[axis] for shape in bottom_shapes)
        return [(*first[:axis], total, *first[axis + 1 :])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        if len(bottoms) == 1:
            return bottoms[0]
        return torch.cat(bottoms, self.own_axis(bottoms[0].dim()))

    def own_axis(self, num_axes: int) -> int:
        """The axis along which bottoms with so many axes are joined."""
        settings = self.param.concat_param
        return _axis_or_legacy(self, settings, "concat_dim", num_axes, "concat_param")


@layer_types.register("Slice")
class Slice(Layer):
    """The bottom, cut along an axis at the slice points or into equal parts (`slice_layer.cpp`)."""

    keeps_type = True

    tops = (1, None)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        points = list(self.param.slice_param.slice_point)
        if points and len(points) != self.num_tops - 1:
            raise self.error(
                f"given {len(points)} times; {self.num_tops} tops need {self.num_tops - 1}",
                "slice_param.slice_point",
            )
        if any(after <= before for before, after in pairwise([0, *points])):
            raise self.error("must be above 0 and ascending", "slice_param.slice_point")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        axis = self.own_axis(len(shape))
        return [(*shape[:axis], part, *shape[axis + 1 :]) for part in self._parts(shape[axis])]

    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        axis = self.own_axis(bottoms[0].dim())
        return torch.split(bottoms[0], self._parts(bottoms[0].shape[axis]), axis)

    def own_axis(self, num_axes: int) -> int:
        """The axis along which a bottom with so many axes is cut."""
        settings = self.param.slice_param
        return _axis_or_legacy(self, settings, "slice_dim", num_axes, "slice_param")

    def _parts(self, extent: int) -> list[int]:
        """The extents of the tops along the axis."""
        points = list(self.param.slice_param.slice_point)
        if not points:
            if extent % self.num_tops:
                raise self.error(
                    f"{self.num_tops} tops do not evenly divide the extent {extent}", "slice_param"
                )
            return [extent // self.num_tops] * self.num_tops
        if points[-1] > extent:
            raise self.error(
                f"{points[-1]} is beyond the extent {extent}", "slice_param.slice_point"
            )
        edges = [0, *points, extent]
        return [after - before for before, after in pairwise(edges)]


@layer_types.register("Split")
class Split(Layer):
    """The bottom, several times; the gradients of the tops add up (`split_layer.cpp`)."""

    keeps_type = True

    tops = (1, None)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        refuse_in_place(self)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [tuple(bottom_shapes[0])] * self.num_tops

    def forward(self, *bottoms: Tensor) -> list[Tensor]:
        # Views, not the bottom itself, so that each top has a gradient of its own.
        return [bottoms[0].view_as(bottoms[0]) for _ in range(self.num_tops)]


@layer_types.register("Flatten")
class Flatten(Layer):
    """The axes from `axis` to `end_axis` merged into one (`flatten_layer.cpp`)."""

    keeps_type = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        refuse_in_place(self)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        settings = self.param.flatten_param
        shape = tuple(bottom_shapes[0])
        start = self.axis(settings.axis, len(shape), "flatten_param.axis")
        end = self.axis(settings.end_axis, len(shape), "flatten_param.end_axis") + 1
        if end < start:
            raise self.error(f"axis {end - 1} lies before axis {start}", "flatten_param.end_axis")
        return [(*shape[:start], count(shape[start:end]), *shape[end:])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].reshape(self.reshape([bottoms[0].shape])[0])


@layer_types.register("Reshape")
class Reshape(Layer):
    """`num_axes` axes from `axis` on replaced by those in `shape` (`reshape_layer.cpp`).

    In `shape`, 0 copies the bottom's extent at the same place, and one -1 is inferred.
    """

    keeps_type = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        refuse_in_place(self)
        extents = list(self.param.reshape_param.shape.dim)
        if extents.count(-1) > 1 or any(extent < -1 for extent in extents):
            raise self.error(
                f"is {extents}; positive extents, 0 and at most one -1 would be right",
                "reshape_param.shape",
            )

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        bottom = tuple(bottom_shapes[0])
        start, end = self._replaced(len(bottom))
        middle = list(self.param.reshape_param.shape.dim)
        for i, extent in enumerate(middle):
            if extent == 0:
                if start + i >= len(bottom):
                    raise self.error(
                        f"the 0 at place {i} has no bottom axis {start + i} to copy",
                        "reshape_param.shape",
                    )
                middle[i] = bottom[start + i]
        if -1 in middle:
            known = -count((*bottom[:start], *middle, *bottom[end:]))
            if known == 0 or count(bottom) % known:
                raise self.error(
                    f"the bottom's {count(bottom)} entries are not divisible by the other extents' "
                    f"product {known}",
                    "reshape_param.shape",
                )
            middle[middle.index(-1)] = count(bottom) // known
        top = (*bottom[:start], *middle, *bottom[end:])
        if count(top) != count(bottom):
            raise self.error(
                f"a bottom of {shape_text(bottom)} cannot become {shape_text(top)}",
                "reshape_param.shape",
            )
        return [top]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].reshape(self.reshape([bottoms[0].shape])[0])

    def _replaced(self, num_axes: int) -> tuple[int, int]:
        """First and end of the bottom axes that `shape` replaces."""
        settings = self.param.reshape_param
        # An axis may also be the place behind the last one, which is -1.
        start = self.axis(settings.axis, num_axes + 1, "reshape_param.axis")
        end = num_axes if settings.num_axes == -1 else start + settings.num_axes
        if not start <= end <= num_axes:
            raise self.error(
                f"is {settings.num_axes}; 0 to {num_axes - start}, or -1 for all, would be right",
                "reshape_param.num_axes",
            )
        return start, end


@layer_types.register("Crop")
class Crop(Layer):
    """A window of the first bottom, as large as the second from `axis` on (`crop_layer.cpp`)."""

    keeps_type = True

    bottoms = (2, 2)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        windows = self._windows(*bottom_shapes)
        return [tuple(window.stop - window.start for window in windows)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0][self._windows(bottoms[0].shape, bottoms[1].shape)]

    def _windows(self, data: Shape, size: Shape) -> tuple[slice, ...]:
        """The part of each axis of the data that is kept."""
        settings = self.param.crop_param
        start = self.axis(settings.axis, len(data), "crop_param.axis")
        offsets = list(settings.offset) or [0]
        if len(offsets) == 1:
            offsets *= len(data) - start
        if len(offsets) != len(data) - start:
            raise self.error(
                f"given {len(offsets)} times; once, or once for each of the {len(data) - start} "
                "cropped axes, would be right",
                "crop_param.offset",
            )
        if len(size) < len(data):
            raise self.error(
                f"the second bottom has {len(size)} axes, the first {len(data)}", "bottom"
            )
        windows = [slice(0, extent) for extent in data[:start]]
        for i, offset in enumerate(offsets, start):
            if offset + size[i] > data[i]:
                raise self.error(
                    f"{offset} with size {size[i]} is beyond the extent {data[i]} of axis {i}",
                    "crop_param.offset",
                )
            windows.append(slice(offset, offset + size[i]))
        return tuple(windows)


@layer_types.register("Silence")
class Silence(Layer):
    """Takes blobs that nothing else reads, so that they are no outputs (`silence_layer.cpp`)."""

    keeps_type = True

    bottoms = (1, None)
    tops = (0, 0)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return []

    def forward(self, *bottoms: Tensor) -> list[Tensor]:
        return []


@layer_types.register("Filter")
class Filter(Layer):
    """The items of every bottom but the last, where the last is not 0 (`filter_layer.cpp`).

    How many those are is known only in the forward pass; `reshape` says all of them.
    """

    bottoms = (2, None)
    tops = (1, None)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        if self.num_tops != len(bottom_shapes) - 1:
            raise self.error(
                f"{len(bottom_shapes)} bottoms make {len(bottom_shapes) - 1} top(s), not "
                f"{self.num_tops}: the last bottom is the selector",
                "top",
            )

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        *data, selector = bottom_shapes
        if not selector or count(selector) != selector[0]:
            raise self.error(f"the selector must have one entry per item, not {selector}", "bottom")
        for i, shape in enumerate(data):
            if shape[:1] != selector[:1]:
                raise self.error(
                    f"bottom {i} of shape {tuple(shape)} does not have the selector's "
                    f"{selector[0]} items",
                    "bottom",
                )
        return [tuple(shape) for shape in data]

    def forward(self, *bottoms: Tensor) -> list[Tensor]:
        *data, selector = bottoms
        chosen = selector.flatten().nonzero().flatten()
        return [bottom.index_select(0, chosen) for bottom in data]
