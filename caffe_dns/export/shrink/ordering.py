"""Reorders the channels of inner blobs so that a compact file needs fewer bytes.

The outputs of a net do not depend on the order, up to rounding: a layer's rows are permuted, and so
are the columns of the layers that read them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from caffe_dns.export.deploy import Deployment
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.shrink.channelwise import Affine, Entrywise, SecondAxis
from caffe_dns.export.shrink.graph import Channels, Graph, Node, connect
from caffe_dns.export.shrink.rules import Rule, rule_for
from caffe_dns.export.shrink.weighted import ConvolutionRule, InnerProductRule, Weighted


def put_in_order(model: UnmaskedModel) -> UnmaskedModel:
    """The model with the channels first that have most weights, in every inner blob where it may.

    It may where all layers around are convolutions without groups, inner products, and layers
    that work on every channel by itself. A model with shared weights stays as it is.
    """
    graph = connect(model)
    if any(spec.name for node in graph.nodes for spec in node.param.param):
        return model
    rules = []
    for node in graph.nodes:
        rules.append(rule_for(node))
        rules[-1].put_axes(node)
    for maker, its_rule, channels in _free(graph, rules):
        order = np.argsort(-_weights(maker, its_rule), kind="stable")
        for tied in channels:
            tied.order = order
    for node, rule in zip(graph.nodes, rules, strict=True):
        rule.rewrite(node)
    definition = Deployment(graph.param, list(model.definition.remarks))
    return replace(model, definition=definition, blobs=[node.arrays for node in graph.nodes])


def _free(graph: Graph, rules: list[Rule]) -> list[tuple[Node, Weighted, list[Channels]]]:
    """The layers whose rows may change places, each with all channels that are its rows."""
    sets: dict[int, list[Channels]] = {id(channels): [channels] for channels in graph.channels}
    makers: dict[int, tuple[Node, Weighted]] = {}
    held = {id(channels) for channels in graph.channels if not channels.readers}
    for node, rule in zip(graph.nodes, rules, strict=True):
        around = [*node.bottoms, *node.tops]
        if isinstance(rule, Weighted) and _multiplies(node, rule):
            makers[id(node.top)] = node, rule
        elif isinstance(rule, Entrywise | SecondAxis | Affine):
            tied = [*rule.tied(node), *node.tops]
            together = [
                c for one in {id(sets[id(t)]): sets[id(t)] for t in tied}.values() for c in one
            ]
            for channels in together:
                sets[id(channels)] = together
            held |= {id(c) for c in around if all(c is not t for t in tied)}
        else:
            held |= {id(channels) for channels in around}
    found = []
    for key, (node, rule) in makers.items():
        members = {id(channels) for channels in sets[key]}
        if not members & held and len(members & makers.keys()) == 1:
            found.append((node, rule, sets[key]))
    return found


def _multiplies(node: Node, rule: Weighted) -> bool:
    """Whether rows and columns of a layer's weight can be put into any order."""
    if type(rule) is ConvolutionRule:
        return rule.settings(node).group == 1
    return isinstance(rule, InnerProductRule) and rule.sums_constants(node)


def _weights(node: Node, rule: Weighted) -> np.ndarray:
    """How many weights and biases each row has."""
    counts: np.ndarray = rule.reduce(node, np.add, node.arrays[0] != 0).sum(1)
    return counts + (rule.bias(node) != 0)
