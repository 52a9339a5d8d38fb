"""Rules for layers of forks and of SSD that treat every channel separately, or nearly so."""

from __future__ import annotations

import numpy as np

from caffe_dns.export.shrink.channelwise import Channelwise, Scaled
from caffe_dns.export.shrink.graph import Node
from caffe_dns.export.shrink.rules import channel_rules
from caffe_dns.layers.forks.resize import Upsample


@channel_rules.register("Axpy")
class AxpyRule(Channelwise):
    """A factor for each channel, and two blobs of these channels."""

    def suits(self, node: Node) -> bool:
        return node.bottom.axis == 1 and super().suits(node)


@channel_rules.register("BN")
class BNRule(Scaled):
    """All blobs are 1 x C x 1 x 1, the factors first."""

    def suits(self, node: Node) -> bool:
        return node.bottom.axis == 1

    def array_axis(self, node: Node, index: int) -> int | None:
        return 1

    def blank(self, node: Node) -> np.ndarray:
        blank: np.ndarray = node.arrays[0].ravel() == 0
        return blank


@channel_rules.register("Interp")
class InterpRule(Channelwise):
    """Between equal numbers there is nothing else."""

    def suits(self, node: Node) -> bool:
        return node.bottom.axis == 1

    def find_constants(self, node: Node) -> None:
        node.top.constant = node.bottom.constant.copy()


@channel_rules.register("Upsample")
class UpsampleRule(InterpRule):
    """With a mask, which has the same channels, there are zeros between the numbers."""

    def suits(self, node: Node) -> bool:
        return all(bottom.axis == 1 for bottom in node.bottoms)

    def find_constants(self, node: Node) -> None:
        super().find_constants(node)
        assert isinstance(node.layer, Upsample)
        if node.layer.by_mask:
            node.top.constant = np.where(node.bottom.constant == 0, 0.0, np.nan)

    def find_needs(self, node: Node) -> None:
        """Where zeros go makes no difference."""
        values, *mask = node.bottoms
        values.needed |= node.top.needed
        for places in mask:
            places.needed |= node.top.needed & (values.constant != 0)


@channel_rules.register("Normalize")
class NormalizeRule(Channelwise):
    """Every channel has a part in the norm, unless it is 0."""

    reason = "they have a part in a norm"

    def suits(self, node: Node) -> bool:
        return node.bottom.axis == 1

    def array_axis(self, node: Node, index: int) -> int | None:
        return 0 if node.arrays[index].ndim else None

    def find_constants(self, node: Node) -> None:
        node.top.constant = np.where(node.bottom.constant == 0, 0.0, np.nan)

    def find_needs(self, node: Node) -> None:
        node.bottom.needed |= bool(node.top.needed.any())

    def agree(self, node: Node) -> None:
        node.hold(node.bottom, node.bottom.constant != 0)
        super().agree(node)
