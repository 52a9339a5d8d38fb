"""Rules for layers that join, cut and renumber channels without changing an entry."""

from __future__ import annotations

import math

import numpy as np

from caffe_dns.export.shrink.channelwise import Channelwise
from caffe_dns.export.shrink.graph import Channels, Node
from caffe_dns.export.shrink.rules import channel_rules
from caffe_dns.layers.detection.permute import Permute
from caffe_dns.layers.shape import Concat, Flatten, Reshape, Slice


class Joined(Channelwise):
    """The channels of several blobs, one after the other, are those of one; or all are alike."""

    def axis(self, node: Node) -> int:
        """The axis along which the blobs are joined."""
        raise NotImplementedError

    def whole(self, node: Node) -> Channels:
        raise NotImplementedError

    def parts(self, node: Node) -> list[Channels]:
        raise NotImplementedError

    def joins_channels(self, node: Node) -> bool:
        return self.axis(node) == node.bottom.axis

    def suits(self, node: Node) -> bool:
        axes = {bottom.axis for bottom in node.bottoms}
        return None not in axes and len(axes) == 1

    def find_constants(self, node: Node) -> None:
        if not self.joins_channels(node):
            super().find_constants(node)
            return
        known = np.concatenate([bottom.constant for bottom in node.bottoms])
        for top, part in zip(node.tops, _cut(known, node.tops), strict=True):
            top.constant = part

    def find_needs(self, node: Node) -> None:
        if not self.joins_channels(node):
            super().find_needs(node)
            return
        needed = np.concatenate([top.needed for top in node.tops])
        for bottom, part in zip(node.bottoms, _cut(needed, node.bottoms), strict=True):
            bottom.needed |= part

    def agree(self, node: Node) -> None:
        if not self.joins_channels(node):
            super().agree(node)
            return
        whole, parts = self.whole(node), self.parts(node)
        goes = whole.removed & np.concatenate([part.removed for part in parts])
        whole.keep(~goes)
        for part, mask in zip(parts, _cut(goes, parts), strict=True):
            part.keep(~mask)


@channel_rules.register("Concat")
class ConcatRule(Joined):
    def axis(self, node: Node) -> int:
        assert isinstance(node.layer, Concat)
        return node.layer.own_axis(len(node.bottom.shape))

    def whole(self, node: Node) -> Channels:
        return node.top

    def parts(self, node: Node) -> list[Channels]:
        return node.bottoms


@channel_rules.register("Slice")
class SliceRule(Joined):
    def axis(self, node: Node) -> int:
        assert isinstance(node.layer, Slice)
        return node.layer.own_axis(len(node.bottom.shape))

    def whole(self, node: Node) -> Channels:
        return node.bottom

    def parts(self, node: Node) -> list[Channels]:
        return node.tops

    def rewrite(self, node: Node) -> None:
        if self.joins_channels(node):
            sizes = [len(top.kept) for top in node.tops]
            points = node.param.slice_param.slice_point
            del points[:]
            points.extend(int(point) for point in np.cumsum(sizes[:-1]))


@channel_rules.register("Flatten", "Reshape")
class Merged(Channelwise):
    """Axes behind the channels become channels of their own, or the channels stay as they are."""

    def suits(self, node: Node) -> bool:
        assert isinstance(node.layer, Flatten | Reshape)
        return node.bottom.axis is not None and self._top_axis(node) is not None

    def put_axes(self, node: Node) -> None:
        node.top.put(self._top_axis(node))

    def find_constants(self, node: Node) -> None:
        node.top.constant = self._spread(node, node.bottom.constant)

    def find_needs(self, node: Node) -> None:
        node.bottom.needed |= self._places(node, node.top.needed).any((0, 2))

    def agree(self, node: Node) -> None:
        goes = node.bottom.removed & self._places(node, node.top.removed).all((0, 2))
        node.bottom.keep(~goes)
        node.top.keep(~self._spread(node, goes))

    def rewrite(self, node: Node) -> None:
        if not node.param.HasField("reshape_param") or node.layer.type != "Reshape":
            return
        settings = node.param.reshape_param
        start = settings.axis % (len(node.bottom.shape) + 1)
        assert node.top.axis is not None
        place = node.top.axis - start
        if 0 <= place < len(settings.shape.dim) and settings.shape.dim[place] > 0:
            settings.shape.dim[place] = len(node.top.kept)

    def _top_axis(self, node: Node) -> int | None:
        """The axis of the top that the channels of the bottom are in, alone or with others."""
        bottom, (top,), axis = node.bottom.shape, [top.shape for top in node.tops], node.bottom.axis
        assert axis is not None
        before, behind = math.prod(bottom[:axis]), math.prod(bottom[axis + 1 :])
        for place, extent in enumerate(top):
            rest = math.prod(top[:place]), math.prod(top[place + 1 :])
            if extent == bottom[axis] and rest == (before, behind):
                return place
            # Merged with axes before them, channels repeat; with axes behind, entries become some.
            inner = before // rest[0] if rest[0] and before % rest[0] == 0 else 0
            outer = behind // rest[1] if rest[1] and behind % rest[1] == 0 else 0
            if inner and outer and inner * bottom[axis] * outer == extent:
                return place
        return None

    def _places(self, node: Node, of_top: np.ndarray) -> np.ndarray:
        """Something of the top's channels by those of the bottom: before x channels x behind."""
        top, bottom = node.top, node.bottom
        assert top.axis is not None
        assert bottom.axis is not None
        inner = math.prod(bottom.shape[: bottom.axis]) // math.prod(top.shape[: top.axis])
        return of_top.reshape(inner, len(bottom), -1)

    def _spread(self, node: Node, of_bottom: np.ndarray) -> np.ndarray:
        """Something of the bottom's channels for each of the top's."""
        places = self._places(node, np.empty(len(node.top), of_bottom.dtype)).shape
        return np.broadcast_to(of_bottom[:, None], places).reshape(-1)


@channel_rules.register("Permute")
class PermuteRule(Channelwise):
    """The channels go where their axis goes."""

    def put_axes(self, node: Node) -> None:
        assert isinstance(node.layer, Permute)
        node.top.put(node.layer.order.index(node.bottom.axis))


def _cut(values: np.ndarray, parts: list[Channels]) -> list[np.ndarray]:
    """`values` in parts as long as these."""
    return np.split(values, np.cumsum([len(part) for part in parts])[:-1])
