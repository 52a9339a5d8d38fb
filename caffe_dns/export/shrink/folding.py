"""Removes the BatchNorm, BN, Scale and Bias layers after a convolution or an inner product.

At test time they multiply each channel by one number and add another, which the weights can do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from caffe_dns.export.deploy import Deployment
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.shrink.graph import Node, connect
from caffe_dns.export.shrink.rules import rule_for
from caffe_dns.export.shrink.weighted import Weighted
from caffe_dns.layers.batch_norm import BatchNorm
from caffe_dns.layers.forks.batch_norm import BN
from caffe_dns.net.definition import without_layers


@dataclass
class Folded:
    """A model of the same outputs, up to rounding, and the names of the layers that it lacks."""

    model: UnmaskedModel
    layers: list[str]


def fold(model: UnmaskedModel) -> Folded:
    """Put BatchNorm, BN, Scale and Bias layers into the weights of what alone feeds them.

    Only where the statistics are those of training, and factors and shifts are one for each
    channel. The given model is left as it is.
    """
    graph = connect(model)
    gone: list[Node] = []
    for node in graph.nodes:
        rule = rule_for(node)
        rule.put_axes(node)
        if not isinstance(rule, Weighted) or len(node.tops) != 1:
            continue
        last = node
        while (follower := _only_reader(last)) is not None:
            affine = _affine(follower)
            if affine is None:
                break
            follower.top.put(node.top.axis)
            rule.scale_rows(node, *affine)
            gone.append(follower)
            last = follower
        node.param.top[0] = last.top.name
        node.param.loss_weight[:] = last.param.loss_weight
        node.tops = last.tops
    left = [node for node in graph.nodes if node not in gone]
    graph.nodes = left
    graph.part_sharers()
    param = without_layers(graph.param)
    param.layer.extend(node.param for node in left)
    definition = Deployment(param, list(model.definition.remarks))
    folded = replace(model, definition=definition, blobs=[node.arrays for node in left])
    return Folded(folded, [node.param.name for node in gone])


def _only_reader(node: Node) -> Node | None:
    """What alone reads the node's top; a loss_weight reads it as well."""
    readers = node.top.readers
    return readers[0] if len(readers) == 1 and not any(node.param.loss_weight) else None


def _affine(node: Node) -> tuple[np.ndarray, np.ndarray] | None:
    """The factor and the shift of each channel, if that is all that the layer does; float64."""
    if len(node.bottoms) != 1 or len(node.tops) != 1:
        return None
    axis, channels = node.bottom.axis, len(node.bottom)
    arrays = [array.astype(np.float64) for array in node.arrays]
    if isinstance(node.layer, BatchNorm):
        if axis != 1 or not node.layer.use_global_stats:
            return None
        mean, variance, (batches,), *own = arrays
        batches = 1 / batches if batches else 0.0
        factor = 1 / np.sqrt(variance * batches + node.layer.eps)
        scale, bias = own or (1.0, 0.0)
        return scale * factor, bias - mean * batches * scale * factor
    if isinstance(node.layer, BN):
        return _affine_of_bn(node.layer, arrays) if axis == 1 else None
    if node.param.type == "Scale":
        first, shape = node.param.scale_param.axis, arrays[0].shape
        factor, shift = arrays[0], arrays[1] if len(arrays) > 1 else np.zeros(channels)
    elif node.param.type == "Bias":
        first, shape = node.param.bias_param.axis, arrays[0].shape
        factor, shift = np.ones(channels), arrays[0]
    else:
        return None
    by_channel = first % len(node.bottom.shape) == axis and shape == (channels,)
    return (factor, shift) if by_channel else None


def _affine_of_bn(layer: BN, arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    slope, bias, *running = (array.ravel() for array in arrays)
    if layer.affine_only:
        return slope, bias
    if not running:
        return None
    mean, variance = running
    factor = slope / np.sqrt(variance + layer.eps)
    return factor, bias - mean * factor
