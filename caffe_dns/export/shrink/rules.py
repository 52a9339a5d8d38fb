"""How a type of layer passes channels on: the interface of a rule, and the table of the rules."""

from __future__ import annotations

import numpy as np
import torch

from caffe_dns.export.shrink.graph import Channels, Node
from caffe_dns.registry import Registry


class Rule:
    """What is known of a layer of a type that has no rule: nothing, so that all channels stay.

    The methods are called in their order, each for all layers: `put_axes` and `find_constants` from
    the first layer on, `find_needs` from the last; `agree` until nothing changes any more; and
    `rewrite` once.
    """

    #: Why the layer holds channels, after "because".
    reason = "its type mixes channels, or is not known not to"

    def suits(self, node: Node) -> bool:
        """Whether the rule holds for this layer; if not, nothing is known of it."""
        return True

    def put_axes(self, node: Node) -> None:
        """Say along which axis the channels of the tops lie."""
        for top in node.tops:
            top.put(1 if len(top.shape) > 1 else None)

    def find_constants(self, node: Node) -> None:
        """Enter the channels of the tops that hold one number, whatever the net is given."""

    def find_needs(self, node: Node) -> None:
        """Mark the channels of the bottoms on which a needed channel of a top depends."""
        for bottom in node.bottoms:
            bottom.needed[:] = True

    def agree(self, node: Node) -> None:
        """Keep the channels that the layer needs in order to lose the others."""
        for channels in (*node.bottoms, *node.tops):
            node.hold(channels, True)

    def rewrite(self, node: Node) -> None:
        """Change the definition and the arrays to those for the channels that stay."""


#: Rules by the type of layer.
channel_rules: Registry[type[Rule]] = Registry("channel rule")


class Source(Rule):
    """A layer without bottoms: what it brings is what others bring to the net."""

    def agree(self, node: Node) -> None:
        for top in node.tops:
            top.keep(True)


def rule_for(node: Node) -> Rule:
    """The rule that holds for a layer, whose bottoms have their axes."""
    if not node.bottoms:
        return Source()
    if node.layer.type in channel_rules:
        rule = channel_rules[node.layer.type]()
        if rule.suits(node):
            return rule
    return Rule()


def run_on_constants(node: Node, bottoms: list[Channels]) -> None:
    """Enter as constants of the tops what the layer itself makes of constant bottoms.

    A channel of a top has to depend on that of the same index of the bottoms only.
    """
    known = np.logical_and.reduce([bottom.is_constant for bottom in bottoms])
    if not known.any():
        return
    with torch.no_grad():
        made = node.layer.double()(*(_filled(bottom) for bottom in node.bottoms))
    for top, values in zip(node.tops, [made] if torch.is_tensor(made) else made, strict=True):
        assert top.axis is not None
        rows = values.movedim(top.axis, 0).reshape(len(top), -1).numpy()
        everywhere = known & (rows.min(1) == rows.max(1))
        top.constant = np.where(everywhere, rows[:, 0], np.nan)


def _filled(channels: Channels) -> torch.Tensor:
    """A blob of one item with the constants in their channels, and 0 in the others."""
    shape = list(channels.shape)
    if channels.axis is None:
        return torch.zeros(shape, dtype=torch.float64)
    if channels.axis > 0:
        shape[0] = 1
    values = torch.from_numpy(np.nan_to_num(channels.constant, nan=0.0))
    values = values.reshape([-1] + [1] * (len(shape) - channels.axis - 1))
    return values.expand(shape).clone()
