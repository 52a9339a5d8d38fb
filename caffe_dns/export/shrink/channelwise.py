"""Rules for layers that treat channels separately: one leaves all of their blobs, or none."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from caffe_dns.export.shrink.graph import Channels, Node
from caffe_dns.export.shrink.rules import Rule, channel_rules, run_on_constants
from caffe_dns.net.channels import ENTRYWISE, SECOND_AXIS
from caffe_dns.proto.caffe_pb2 import LRNParameter


class Channelwise(Rule):
    """A layer whose blobs all have the same channels, those of an array along one of its axes."""

    def tied(self, node: Node) -> list[Channels]:
        """The bottoms whose channels become those of the tops, index by index."""
        return node.bottoms

    def array_axis(self, node: Node, index: int) -> int | None:
        """The axis of the layer's blob `index` that the channels lie along; None if they do not."""
        return None

    def suits(self, node: Node) -> bool:
        first, *others = self.tied(node)
        return first.axis is not None and all(
            other.axis == first.axis and len(other) == len(first) for other in others
        )

    def put_axes(self, node: Node) -> None:
        for top in node.tops:
            top.put(self.tied(node)[0].axis)

    def find_constants(self, node: Node) -> None:
        run_on_constants(node, self.tied(node))

    def find_needs(self, node: Node) -> None:
        needed = np.logical_or.reduce([top.needed for top in node.tops])
        for bottom in self.tied(node):
            bottom.needed |= needed

    def agree(self, node: Node) -> None:
        tied = [*self.tied(node), *node.tops]
        goes = np.logical_and.reduce([channels.removed for channels in tied])
        for channels in tied:
            channels.keep(~goes)

    def rewrite(self, node: Node) -> None:
        kept = self.tied(node)[0].kept
        for index, array in enumerate(node.arrays):
            axis = self.array_axis(node, index)
            if axis is not None:
                node.arrays[index] = np.take(array, kept, axis)


@channel_rules.register(*ENTRYWISE)
class Entrywise(Channelwise):
    """Every entry of the top is made of those at its place in the bottoms."""


@channel_rules.register(*SECOND_AXIS)
class SecondAxis(Channelwise):
    """Channels are the second axis, whatever the blob; arrays of one number are for all."""

    def suits(self, node: Node) -> bool:
        return node.bottom.axis == 1

    def array_axis(self, node: Node, index: int) -> int | None:
        array = node.arrays[index]
        shared = node.layer.type == "PReLU" and node.param.prelu_param.channel_shared
        of_batches = node.layer.type == "BatchNorm" and index == 2
        return None if shared or of_batches or not array.ndim else 0


@channel_rules.register("LRN")
class WithinChannel(SecondAxis):
    """Seen through only where the neighbours are those of the same channel."""

    def suits(self, node: Node) -> bool:
        within = node.param.lrn_param.norm_region == LRNParameter.WITHIN_CHANNEL
        return within and super().suits(node)


@channel_rules.register("MVN")
class PerChannel(SecondAxis):
    def suits(self, node: Node) -> bool:
        return not node.param.mvn_param.across_channels and super().suits(node)


class Scaled(Channelwise):
    """Where the factor is zero, the shift is left, whatever the bottom was."""

    @abstractmethod
    def blank(self, node: Node) -> np.ndarray:
        """The channels that are multiplied by zero."""

    def find_constants(self, node: Node) -> None:
        bottom, known = node.bottom, node.bottom.constant
        bottom.constant = np.where(self.blank(node) & np.isnan(known), 0.0, known)
        super().find_constants(node)
        bottom.constant = known

    def find_needs(self, node: Node) -> None:
        blank = self.blank(node)
        for bottom in node.bottoms:
            bottom.needed |= node.top.needed & ~blank


class Affine(Channelwise):
    """A layer with an array along some axes, or with a second bottom in its place."""

    def first_axis(self, node: Node) -> int:
        """The axis of the bottom that the array begins at."""
        raise NotImplementedError

    def suits(self, node: Node) -> bool:
        first, *second = node.bottoms
        if first.axis is None:
            return False
        if not second:
            return True
        axis = second[0].axis
        return axis is not None and axis + self.first_axis(node) == first.axis

    def array_axis(self, node: Node, index: int) -> int | None:
        assert node.bottom.axis is not None
        axis = node.bottom.axis - self.first_axis(node)
        return axis if 0 <= axis < node.arrays[index].ndim else None


@channel_rules.register("Bias")
class BiasRule(Affine):
    def first_axis(self, node: Node) -> int:
        return node.param.bias_param.axis % len(node.bottom.shape)


@channel_rules.register("Scale")
class ScaleRule(Scaled, Affine):
    def first_axis(self, node: Node) -> int:
        return node.param.scale_param.axis % len(node.bottom.shape)

    def blank(self, node: Node) -> np.ndarray:
        if len(node.bottoms) == 2 or (axis := self.array_axis(node, 0)) is None:
            return np.zeros(len(node.bottom), bool)
        factors = np.moveaxis(node.arrays[0], axis, 0)
        blank: np.ndarray = (factors.reshape(len(factors), -1) == 0).all(1)
        return blank


@channel_rules.register("Crop")
class CropRule(Channelwise):
    """The second bottom gives nothing but its extents, and these only from an axis on."""

    def suits(self, node: Node) -> bool:
        first, size = node.bottoms
        start = node.param.crop_param.axis % len(first.shape)
        return all(b.axis is not None and b.axis < start for b in (first, size))

    def tied(self, node: Node) -> list[Channels]:
        return node.bottoms[:1]


@channel_rules.register("ROIPooling")
class RegionRule(Channelwise):
    """The second bottom says where the regions are; those without a pixel give 0."""

    def suits(self, node: Node) -> bool:
        return node.bottom.axis == 1

    def tied(self, node: Node) -> list[Channels]:
        return node.bottoms[:1]

    def find_constants(self, node: Node) -> None:
        node.top.constant = np.where(node.bottom.constant == 0, 0.0, np.nan)

    def find_needs(self, node: Node) -> None:
        super().find_needs(node)
        node.bottoms[1].needed[:] = True

    def agree(self, node: Node) -> None:
        super().agree(node)
        node.hold(node.bottoms[1], True)


@channel_rules.register("PriorBox", "PriorBoxClustered", "Silence")
class Unread(Rule):
    """A layer that reads at most the extents behind the channels."""

    def find_needs(self, node: Node) -> None:
        """It needs none."""

    def agree(self, node: Node) -> None:
        for top in node.tops:
            node.hold(top, True)
