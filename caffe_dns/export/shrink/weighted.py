"""Rules for layers that multiply their bottom by a matrix, or convolve it.

What such a layer adds up for a constant channel is a constant, too. It goes into the bias, unless
zero padding stands in the way.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from caffe_dns.export.shrink.graph import Node
from caffe_dns.export.shrink.rules import Rule, channel_rules
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.inner_product import BaseInnerProduct
from caffe_dns.proto.caffe_pb2 import ConvolutionParameter, InnerProductParameter


class Weighted(Rule):
    """A weight with a row for each channel of the top and a column for each of the bottom."""

    reason = "its padding is zero, which their constant is not"

    @abstractmethod
    def settings(self, node: Node) -> ConvolutionParameter | InnerProductParameter:
        """The message with num_output and bias_term."""

    @abstractmethod
    def reduce(self, node: Node, how: np.ufunc, weight: np.ndarray) -> np.ndarray:
        """`weight`, reduced by `how` to a matrix: rows x columns, 0 where the groups differ."""

    @abstractmethod
    def pick(self, node: Node) -> np.ndarray:
        """The weight for the channels that stay."""

    @abstractmethod
    def by_row(self, node: Node, factors: np.ndarray) -> np.ndarray:
        """The weight, each row times its factor."""

    def scale_rows(self, node: Node, factors: np.ndarray, shifts: np.ndarray) -> None:
        """Let each channel of the top be what it was, times its factor, plus its shift."""
        bias = self.bias(node) * factors + shifts
        node.arrays = [array.astype(np.float32) for array in (self.by_row(node, factors), bias)]
        self.settings(node).bias_term = True

    def sums_constants(self, node: Node) -> bool:
        """Whether a constant channel adds the same number everywhere to those of the top."""
        return True

    def touches(self, node: Node) -> np.ndarray:
        """Whether a row has a weight for a column that is not zero: rows x columns."""
        return node.remember(
            "touches", lambda: self.reduce(node, np.logical_or, node.arrays[0] != 0)
        )

    def sums(self, node: Node) -> np.ndarray:
        """What a row adds up of a column that is 1 everywhere: rows x columns, float64."""
        return node.remember("sums", lambda: self.reduce(node, np.add, node.arrays[0]))

    def bias(self, node: Node) -> np.ndarray:
        if self.settings(node).bias_term:
            return node.arrays[1].astype(np.float64)
        return np.zeros(len(node.top))

    def added(self, node: Node, channels: np.ndarray) -> np.ndarray:
        """What the constants of these channels of the bottom add to each of the top."""
        constants = np.where(channels, node.bottom.constant, 0.0)
        if not constants.any():
            return np.zeros(len(node.top))
        added: np.ndarray = self.sums(node) @ constants
        return added

    def find_constants(self, node: Node) -> None:
        known = node.bottom.is_constant
        if not self.sums_constants(node):
            known &= node.bottom.constant == 0
        varies = (self.touches(node) & ~known).any(1)
        node.top.constant = np.where(varies, np.nan, self.bias(node) + self.added(node, known))

    def find_needs(self, node: Node) -> None:
        node.bottom.needed |= (self.touches(node) & node.top.needed[:, None]).any(0)

    def agree(self, node: Node) -> None:
        if not self.sums_constants(node):
            live = node.top.needed & ~node.top.removed
            read = (self.touches(node) & live[:, None]).any(0)
            node.hold(node.bottom, read & node.bottom.is_constant & (node.bottom.constant != 0))

    def rewrite(self, node: Node) -> None:
        settings, kept = self.settings(node), node.top.kept
        added = self.added(node, node.bottom.removed & node.bottom.is_constant)[kept]
        bias = self.bias(node)[kept] + added
        node.arrays[0] = np.ascontiguousarray(self.pick(node))
        settings.num_output = len(kept)
        if settings.bias_term or added.any():
            if not settings.bias_term:
                settings.bias_term = True
            node.arrays[1:2] = [bias.astype(np.float32)]


@channel_rules.register("InnerProduct")
class InnerProductRule(Weighted):
    """The bottom's channels may have further axes, whose places have columns of their own.

    Where they lie along an axis that the layer does not sum over, it holds them all.
    """

    reason = "it multiplies what lies behind them"

    def suits(self, node: Node) -> bool:
        return node.bottom.axis is not None

    def put_axes(self, node: Node) -> None:
        node.top.put(_inner_product(node).first_axis)

    def settings(self, node: Node) -> InnerProductParameter:
        return node.param.inner_product_param

    def sums_constants(self, node: Node) -> bool:
        return self._sums_channels(node)

    def agree(self, node: Node) -> None:
        if not self._sums_channels(node):
            node.hold(node.bottom, True)

    def reduce(self, node: Node, how: np.ufunc, weight: np.ndarray) -> np.ndarray:
        axis, rows = self._unfold(node, weight)
        reduced: np.ndarray
        if axis < 1:
            reduced = np.asarray(how.reduce(rows.reshape(len(rows), -1), 1, _wide(how)))
            return np.broadcast_to(reduced[:, None], (len(rows), len(node.bottom)))
        others = tuple(i for i in range(1, rows.ndim) if i != axis)
        reduced = rows if not others else np.asarray(how.reduce(rows, others, _wide(how)))
        return reduced

    def pick(self, node: Node) -> np.ndarray:
        axis, rows = self._unfold(node, node.arrays[0])
        rows = np.take(rows, node.top.kept, 0)
        if axis >= 1:
            rows = np.take(rows, node.bottom.kept, axis)
        rows = rows.reshape(len(rows), -1)
        return rows.T if _inner_product(node).transpose else rows

    def by_row(self, node: Node, factors: np.ndarray) -> np.ndarray:
        weight = node.arrays[0]
        return weight * (factors if _inner_product(node).transpose else factors[:, None])

    def _sums_channels(self, node: Node) -> bool:
        assert node.bottom.axis is not None
        return node.bottom.axis >= _inner_product(node).first_axis

    def _unfold(self, node: Node, weight: np.ndarray) -> tuple[int, np.ndarray]:
        """The weight with the bottom's axes behind the rows, and the axis of the channels.

        The latter is below 1 where the weight has none for them.
        """
        layer, bottom = _inner_product(node), node.bottom
        assert bottom.axis is not None
        rows = weight.T if layer.transpose else weight
        shape = bottom.shape[layer.first_axis :]
        return 1 + bottom.axis - layer.first_axis, rows.reshape(len(rows), *shape)


@channel_rules.register("Convolution")
class ConvolutionRule(Weighted):
    """Groups have to stay alike: each loses as many channels as the others, or all that it has."""

    def suits(self, node: Node) -> bool:
        return len(node.bottoms) == 1 and node.bottom.axis == _convolution(node).channel_axis

    def put_axes(self, node: Node) -> None:
        node.top.put(_convolution(node).channel_axis)

    def settings(self, node: Node) -> ConvolutionParameter:
        return node.param.convolution_param

    def sums_constants(self, node: Node) -> bool:
        layer = _convolution(node)
        padded = any(map(any, map(layer.padding, range(layer.num_spatial_axes))))
        return not padded and not any(layer.missing(node.bottom.shape[layer.channel_axis + 1 :]))

    def agree(self, node: Node) -> None:
        super().agree(node)
        groups = _convolution(node).group
        if groups == 1:
            return
        whole = self._whole_groups(node)
        for channels in (node.bottom, node.top):
            removed = channels.removed.reshape(groups, -1)
            counts = removed.sum(1)
            most = counts[~whole].min(initial=removed.shape[1])
            for group in np.flatnonzero(~whole & (counts > most)):
                spare = np.zeros(removed.shape, bool)
                spare[group, np.flatnonzero(removed[group])[most:]] = True
                node.hold(channels, spare.ravel())

    def reduce(self, node: Node, how: np.ufunc, weight: np.ndarray) -> np.ndarray:
        groups = _convolution(node).group
        blocks = self._blocks(node, weight)
        others = tuple(range(3, blocks.ndim))
        blocks = how.reduce(blocks, others, _wide(how)) if others else blocks
        rows, columns = blocks.shape[1:]
        matrix = np.zeros((groups, rows, groups, columns), blocks.dtype)
        for group in range(groups):
            matrix[group, :, group] = blocks[group]
        return matrix.reshape(groups * rows, groups * columns)

    def pick(self, node: Node) -> np.ndarray:
        left = np.flatnonzero(~self._whole_groups(node))
        blocks = self._blocks(node, node.arrays[0])
        tops, bottoms = (
            _by_group(end.kept, len(end), len(blocks)) for end in (node.top, node.bottom)
        )
        picked = [blocks[group][tops[group]][:, bottoms[group]] for group in left]
        self.settings(node).group = len(left)
        return self._joined(np.stack(picked))

    def by_row(self, node: Node, factors: np.ndarray) -> np.ndarray:
        blocks = self._blocks(node, node.arrays[0])
        kernel = [1] * (blocks.ndim - 3)
        return self._joined(blocks * factors.reshape(len(blocks), -1, 1, *kernel))

    def rewrite(self, node: Node) -> None:
        has_group = self.settings(node).HasField("group")
        super().rewrite(node)
        if not has_group:
            self.settings(node).ClearField("group")

    def _whole_groups(self, node: Node) -> np.ndarray:
        """Whether a group goes as a whole."""
        groups = _convolution(node).group
        inputs, outputs = (end.removed.reshape(groups, -1) for end in (node.bottom, node.top))
        return np.asarray(inputs.all(1) & outputs.all(1))

    def _blocks(self, node: Node, weight: np.ndarray) -> np.ndarray:
        """A weight as groups x rows x columns x kernel."""
        groups = _convolution(node).group
        return weight.reshape(groups, len(weight) // groups, *weight.shape[1:])

    def _joined(self, blocks: np.ndarray) -> np.ndarray:
        """The other way round."""
        return blocks.reshape(-1, *blocks.shape[2:])


@channel_rules.register("Deconvolution")
class DeconvolutionRule(ConvolutionRule):
    """Its sums differ from place to place, as kernels overlap."""

    reason = "it spreads their constant unevenly"

    def sums_constants(self, node: Node) -> bool:
        return False

    def _blocks(self, node: Node, weight: np.ndarray) -> np.ndarray:
        return super()._blocks(node, weight).swapaxes(1, 2)

    def _joined(self, blocks: np.ndarray) -> np.ndarray:
        return super()._joined(blocks.swapaxes(1, 2))


def _by_group(kept: np.ndarray, count: int, groups: int) -> list[np.ndarray]:
    """Of `count` channels in groups, those that are kept: for each group, its own numbers."""
    size = count // groups
    return [kept[kept // size == group] % size for group in range(groups)]


def _wide(how: np.ufunc) -> type:
    return np.float64 if how is np.add else bool


def _convolution(node: Node) -> BaseConvolution:
    assert isinstance(node.layer, BaseConvolution)
    return node.layer


def _inner_product(node: Node) -> BaseInnerProduct:
    assert isinstance(node.layer, BaseInnerProduct)
    return node.layer
