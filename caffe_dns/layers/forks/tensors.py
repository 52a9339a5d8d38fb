"""Layers of Synopsys' fork that stand for operators of TensorFlow and ONNX."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import Layer, Shape, count, layer_types
from caffe_dns.layers.checks import refuse_in_place


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


class Broadcast(Layer):
    """Two bottoms of which axes of extent 1, or that one lacks in front, fit any extent."""

    bottoms = (2, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        refuse_in_place(self)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        try:
            return [tuple(torch.broadcast_shapes(*map(tuple, bottom_shapes)))]
        except RuntimeError:
            shapes = " and ".join(str(tuple(shape)) for shape in bottom_shapes)
            raise self.error(
                f"{shapes} do not fit; equal extents, or 1, would be right", "bottom"
            ) from None


@layer_types.register("Add")
class Add(Broadcast):
    """The sum of two bottoms (`add_layer.cpp`)."""

    def forward(self, *bottoms: Tensor) -> Tensor:
        first, second = bottoms
        return first + second


@layer_types.register("Mul")
class Mul(Broadcast):
    """The product of two bottoms (`mul_layer.cpp`)."""

    def forward(self, *bottoms: Tensor) -> Tensor:
        first, second = bottoms
        return first * second


@layer_types.register("Pad")
class Pad(Layer):
    """`constant_values` before and behind each axis, by `paddings` (`pad_layer.cpp`)."""

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape, paddings = tuple(bottom_shapes[0]), self.param.pad_param.paddings
        if len(paddings) != 2 * len(shape):
            raise self.error(
                f"has {len(paddings)} numbers; two for each axis of {shape} would be right",
                "pad_param.paddings",
            )
        pairs = zip(paddings[::2], paddings[1::2], strict=True)
        return [tuple(extent + sum(pair) for extent, pair in zip(shape, pairs, strict=True))]

    def forward(self, *bottoms: Tensor) -> Tensor:
        settings = self.param.pad_param
        pairs = zip(settings.paddings[::2], settings.paddings[1::2], strict=True)
        # F.pad counts from the last axis backwards.
        amounts = [amount for pair in reversed(list(pairs)) for amount in pair]
        return F.pad(bottoms[0], amounts, value=settings.constant_values)


#: The formats of images by name: what they are in Caffe's order, and the axis of their channels.
_CHANNELS = {"NHWC": 3, "NCHW": 1, "DCR": 1, "CRD": 1}


@layer_types.register("DepthToSpace")
class DepthToSpace(Layer):
    """Channels become squares of pixels (`depth_to_space_layer.cpp`).

    They lie pixel by pixel of a square, in the `data_format` CRD channel by channel.
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.depth_to_space_param
        self.side = settings.block_size
        if self.side < 1:
            raise self.error("must be given and positive", "depth_to_space_param.block_size")
        if settings.data_format not in _CHANNELS:
            raise self.error(
                f"is '{settings.data_format}'; known: {', '.join(_CHANNELS)}",
                "depth_to_space_param.data_format",
            )
        self.channel_axis = _CHANNELS[settings.data_format]
        self.by_channel = settings.data_format == "CRD"

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = list(bottom_shapes[0])
        if len(shape) != 4:
            raise self.error(f"the bottom needs 4 axes, it has {len(shape)}", "bottom")
        if shape[self.channel_axis] % self.side**2:
            raise self.error(
                f"block_size^2 does not divide the {shape[self.channel_axis]} channels",
                "depth_to_space_param.block_size",
            )
        for axis in {1, 2, 3} - {self.channel_axis}:
            shape[axis] *= self.side
        shape[self.channel_axis] //= self.side**2
        return [tuple(shape)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        images = bottoms[0].movedim(self.channel_axis, 1)
        squares = (self.side, self.side)
        if not self.by_channel:
            images = images.unflatten(1, (*squares, -1)).movedim(3, 1).flatten(1, 3)
        return F.pixel_shuffle(images, self.side).movedim(1, self.channel_axis)


class _Blocks(Layer):
    """Blocks along the axes behind the first, and what is added or cut off around them."""

    #: The names of the settings, and in them of what is added or cut off.
    field, around = "", ""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = getattr(self.param, self.field)
        self.block, around = list(settings.block_shape), list(getattr(settings, self.around))
        axes = len(bottom_shapes[0])
        if len(self.block) >= axes or min(self.block, default=1) < 1:
            raise self.error(
                f"is {self.block}; at least 1 for some of the {axes - 1} axes behind the first "
                "would be right",
                f"{self.field}.block_shape",
            )
        if len(around) != 2 * len(self.block):
            raise self.error(
                f"has {len(around)} numbers; two for each of the {len(self.block)} blocks would be "
                "right",
                f"{self.field}.{self.around}",
            )
        self.pairs = list(zip(around[::2], around[1::2], strict=True))


@layer_types.register("SpaceToBatchND")
class SpaceToBatchND(_Blocks):
    """Each place of blocks as a batch, after zeros around (`space_to_batch_nd_layer.cpp`)."""

    field, around = "space_to_batch_nd_param", "paddings"

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        num, *extents = bottom_shapes[0]
        for axis, (block, pair) in enumerate(zip(self.block, self.pairs, strict=True)):
            extents[axis] += sum(pair)
            if extents[axis] % block:
                raise self.error(
                    f"{block} does not divide axis {axis + 1}, which is {extents[axis]} long with "
                    "its paddings",
                    f"{self.field}.block_shape",
                )
            extents[axis] //= block
        return [(num * count(tuple(self.block)), *extents)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        (bottom,) = bottoms
        blocks, rest = len(self.block), bottom.dim() - 1 - len(self.block)
        amounts = [0, 0] * rest + [amount for pair in reversed(self.pairs) for amount in pair]
        padded = F.pad(bottom, amounts)
        for axis in reversed(range(blocks)):
            padded = padded.unflatten(1 + axis, (-1, self.block[axis]))
        places = range(2, 2 * blocks + 1, 2)
        others = (axis for axis in range(padded.dim()) if axis not in places)
        return padded.permute(*places, *others).reshape(self.reshape([tuple(bottom.shape)])[0])


@layer_types.register("BatchToSpaceND")
class BatchToSpaceND(_Blocks):
    """What SpaceToBatchND took apart in one piece, then cut (`batch_to_space_nd_layer.cpp`)."""

    field, around = "batch_to_space_nd_param", "crops"

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        num, *extents = bottom_shapes[0]
        if num % count(tuple(self.block)):
            raise self.error(
                f"blocks of {self.block} do not divide the batch of {num}",
                f"{self.field}.block_shape",
            )
        for axis, (block, pair) in enumerate(zip(self.block, self.pairs, strict=True)):
            extents[axis] = extents[axis] * block - sum(pair)
            if extents[axis] < 1:
                raise self.error(f"nothing is left of axis {axis + 1}", f"{self.field}.crops")
        return [(num // count(tuple(self.block)), *extents)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        (bottom,) = bottoms
        (top,) = self.reshape([tuple(bottom.shape)])
        blocks = len(self.block)
        apart = bottom.unflatten(0, (*self.block, -1))
        places = [axis for i in range(blocks) for axis in (blocks + 1 + i, i)]
        whole = apart.permute(blocks, *places, *range(2 * blocks + 1, apart.dim()))
        for axis, (before, _) in enumerate(self.pairs):
            whole = whole.flatten(1 + axis, 2 + axis).narrow(1 + axis, before, top[1 + axis])
        return whole
