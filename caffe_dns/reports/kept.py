"""What pruning left of a net, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net import Net
from caffe_dns.surgery.layer_count import LayerCount, count_line, sum_line


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
    return [*map(count_line, counts), sum_line(kept, total)]
