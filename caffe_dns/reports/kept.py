"""What pruning left of a net, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caffe_dns.layers.base import Layer
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net import Net
from caffe_dns.surgery.layer_count import LayerCount, count_line, sum_line


def count_kept(net: Net) -> list[LayerCount]:
    """Counts for every layer with parameters of its own, in the net's order.

    All that can learn counts, whether it can be pruned or not, as it does for a compression that
    surgery goes for; masks and running statistics do not. A shared parameter counts with the layer
    that owns it.
    """
    owned: dict[Layer, list[Tensor]] = {}
    for param in net.learnable_params:
        if param.counts:
            owned.setdefault(param.layer, []).append(effective_blob(param.layer, param.index))
    return [
        LayerCount(
            layer.name,
            sum(int(parameter.count_nonzero()) for parameter in own),
            sum(parameter.numel() for parameter in own),
        )
        for layer, own in owned.items()
    ]


def effective_blob(layer: Layer, index: int) -> Tensor:
    """A blob as the forward pass uses it: masked if it has a mask."""
    value = layer.effective()[index] if isinstance(layer, WeightedLayer) else layer.blobs[index]
    assert value is not None
    return value


def kept_lines(counts: Sequence[LayerCount]) -> list[str]:
    """A line for each layer and one for the whole net, if anything was pruned."""
    kept, total = sum(c.kept for c in counts), sum(c.total for c in counts)
    # A bias or two may be zero by chance; a hundredth of all parameters may not.
    if total - kept <= total / 100:
        return []
    return [*map(count_line, counts), sum_line(kept, total)]
