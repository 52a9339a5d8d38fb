"""What pruning left of a net, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net import Net


@dataclass(frozen=True)
class LayerCount:
    """How many of a layer's weights and biases are not zero, masks applied."""

    name: str
    kept: int
    total: int


def count_kept(net: Net) -> list[LayerCount]:
    """Counts for every layer with a weight or bias of its own, in the net's order.

    A shared parameter counts with the layer that owns it.
    """
    counts = []
    for step in net.steps:
        layer = step.layer
        if not isinstance(layer, WeightedLayer):
            continue
        own = [
            parameter
            for index, parameter in enumerate(layer.effective())
            if parameter is not None and net.table.is_owner(layer, index)
        ]
        if own:
            kept = sum(int(parameter.count_nonzero()) for parameter in own)
            counts.append(LayerCount(layer.name, kept, sum(p.numel() for p in own)))
    return counts


def kept_lines(counts: Sequence[LayerCount]) -> list[str]:
    """A line for each layer and one for the whole net, if anything was pruned."""
    kept, total = sum(c.kept for c in counts), sum(c.total for c in counts)
    # A bias or two may be zero by chance; a hundredth of all parameters may not.
    if total - kept <= total / 100:
        return []
    lines = [
        f"Kept {entry.name}: {entry.kept} of {entry.total} parameters "
        f"({100 * entry.kept / entry.total:.2f} %)"
        for entry in counts
    ]
    ratio = f"{total / kept:.1f} times smaller" if kept else "nothing is left"
    return [*lines, f"Kept in all: {kept} of {total} parameters ({ratio})"]
