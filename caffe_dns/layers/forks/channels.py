"""Moves or weights channels or pixels: Axpy, ChannelScale, ShuffleChannel, Reorg, Flip."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Layer, SameShape, Shape, count, layer_types
from caffe_dns.layers.checks import refuse_in_place


@layer_types.register("Axpy")
class Axpy(Layer):
    """a * x + y, with one factor a for each channel of each item (SENet).

    Bottoms: a, N x C or N x C x 1 x 1; x and y, N x C x ...
    """

    bottoms = (3, 3)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        factors, first, second = map(tuple, bottom_shapes)
        if first != second:
            raise self.error(
                f"the second and the third bottom are {first} and {second}; the same shape would "
                "be right",
                "bottom",
            )
        if len(first) < 2 or factors[:2] != first[:2] or set(factors[2:]) - {1}:
            raise self.error(
                f"the factors are {factors}; one for each item and channel of {first} would be "
                "right",
                "bottom",
            )
        return [first]

    def forward(self, *bottoms: Tensor) -> Tensor:
        factors, first, second = bottoms
        return factors.view(*first.shape[:2], *[1] * (first.dim() - 2)) * first + second


@layer_types.register("ChannelScale")
class ChannelScale(Layer):
    """Channels of each place times one factor (happynear).

    Bottoms: N x C x ..., and as many factors as that has places.
    """

    bottoms = (2, 2)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape, factors = map(tuple, bottom_shapes)
        if len(shape) < 2 or count(factors) * shape[1] != count(shape):
            raise self.error(
                f"the factors are {factors}; one for each item and place of {shape} would be right",
                "bottom",
            )
        return [shape]

    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom, factors = bottoms
        return bottom * factors.reshape(bottom.shape[0], 1, *bottom.shape[2:])


@layer_types.register("ShuffleChannel")
class ShuffleChannel(SameShape):
    """The channels of `group` groups, dealt out in turn: the first of each, then the second, ...

    Bottom N x C x ... (ShuffleNet).
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.group = self.param.shuffle_channel_param.group
        if self.group < 1:
            raise self.error("must be at least 1", "shuffle_channel_param.group")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        if len(shape) < 2 or shape[1] % self.group:
            raise self.error(
                f"{self.group} groups do not divide the channels of {tuple(shape)}",
                "shuffle_channel_param.group",
            )
        return super().reshape(bottom_shapes)

    def forward(self, *bottoms: Tensor) -> Tensor:
        (bottom,) = bottoms
        groups = bottom.unflatten(1, (self.group, -1))
        return groups.transpose(1, 2).reshape(bottom.shape)


@layer_types.register("Reorg")
class Reorg(Layer):
    """Squares of stride x stride pixels to channels, or, with `reverse`, back (MobileNet-YOLO).

    Without `reverse` it does what darknet does: the bottom N x C x H x W is taken for
    N x C / stride^2 x H * stride x W * stride, its squares become channels, offsets first, and the
    numbers that come out are taken for N x C * stride^2 x H / stride x W / stride.
    """

    needs_numbers = ALL_BOTTOMS

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        refuse_in_place(self)
        self.stride, self.reverse = self.param.reorg_param.stride, self.param.reorg_param.reverse
        if self.stride < 1:
            raise self.error("must be given and positive", "reorg_param.stride")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        stride = self.stride
        if len(bottom_shapes[0]) != 4:
            raise self.error(f"the bottom needs 4 axes, it has {len(bottom_shapes[0])}", "bottom")
        num, channels, height, width = bottom_shapes[0]
        if channels % stride**2:
            raise self.error(
                f"stride^2 does not divide the {channels} channels", "reorg_param.stride"
            )
        if self.reverse:
            return [(num, channels // stride**2, height * stride, width * stride)]
        if height % stride or width % stride:
            raise self.error(f"does not divide {height} x {width} pixels", "reorg_param.stride")
        return [(num, channels * stride**2, height // stride, width // stride)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        (bottom,) = bottoms
        stride = self.stride
        num, _, height, width = bottom.shape
        if self.reverse:
            squares = bottom.reshape(num, stride, stride, -1, height, width)
            top = squares.permute(0, 3, 4, 1, 5, 2)
        else:
            squares = bottom.reshape(num, -1, height, stride, width, stride)
            top = squares.permute(0, 3, 5, 1, 2, 4)
        return top.reshape(self.reshape([tuple(bottom.shape)])[0])


@layer_types.register("Flip")
class Flip(SameShape):
    """Images N x C x H x W from right to left, or upside down (`flip_layer.cpp`, happynear)."""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        if len(bottom_shapes[0]) != 4:
            raise self.error(f"the bottom needs 4 axes, it has {len(bottom_shapes[0])}", "bottom")
        settings = self.param.flip_param
        turned = ((2, settings.flip_height), (3, settings.flip_width))
        self.axes = [axis for axis, is_turned in turned if is_turned]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].flip(self.axes)


@layer_types.register("NormalizeChannels")
class NormalizeChannels(Layer):
    """The channels of each place divided by their norm, happynear's Normalize.

    Tops: N x C x H x W, and the norms N x 1 x H x W, as in `normalize_layer.cpp`.
    """

    tops = (1, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.normalize_param
        if settings.normalize_type not in ("L1", "L2"):
            what = f"is '{settings.normalize_type}'; known: L1, L2"
            raise self.error(what, "normalize_param.normalize_type")
        if settings.fix_gradient:
            raise self.error("is not supported; false would do", "normalize_param.fix_gradient")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        if not 2 <= len(shape) <= 4:
            raise self.error(f"the bottom needs 2 to 4 axes, it has {len(shape)}", "bottom")
        num, channels, height, width = (*shape, 1, 1)[:4]
        tops: list[Shape] = [(num, channels, height, width), (num, 1, height, width)]
        return tops[: self.num_tops]

    def forward(self, *bottoms: Tensor) -> list[Tensor]:
        settings = self.param.normalize_param
        bottom = bottoms[0].reshape(self.reshape([tuple(bottoms[0].shape)])[0])
        if settings.normalize_type == "L1":
            norms = bottom.abs().sum(1, keepdim=True) + 1e-6
        else:
            norms = (bottom.square().sum(1, keepdim=True) + 1e-6).sqrt()
        tops = [bottom / norms, norms if settings.bp_norm else norms.detach()]
        return tops[: self.num_tops]
