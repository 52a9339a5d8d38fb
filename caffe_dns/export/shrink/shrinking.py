"""Removes the channels that no output of a model depends on, and the constant ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from caffe_dns.export.deploy import Deployment
from caffe_dns.export.inputs import data_layers
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.shrink.graph import Graph, Node, connect
from caffe_dns.export.shrink.rules import Rule, rule_for
from caffe_dns.proto.caffe_pb2 import NetParameter


@dataclass
class Shrunk:
    """A model of the same outputs, up to rounding, and what its layers lost.

    `lost` has a line for each layer with weights that makes fewer channels now, `held` one for each
    that kept channels because of its type or settings.
    """

    model: UnmaskedModel
    lost: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)


def shrink(model: UnmaskedModel) -> Shrunk:
    """Take away the channels of inner blobs that are constant, and those that nothing reads.

    Constants go into the biases of the layers that read them. Inputs and outputs of the net keep
    all their channels, and every blob keeps at least one. The given model is left as it is.
    """
    graph = connect(model)
    rules = _find_idle(graph)
    _settle(graph, rules)
    lost = [
        _lost(node)
        for node in graph.nodes
        if node.arrays and any(t.removed.any() for t in node.tops)
    ]
    held = [
        f"{node.param.name} ({node.param.type}) keeps {node.held} idle channel(s): {rule.reason}"
        for node, rule in zip(graph.nodes, rules, strict=True)
        if node.held
    ]
    for node, rule in zip(graph.nodes, rules, strict=True):
        rule.rewrite(node)
    graph.part_sharers()
    definition = Deployment(graph.param, list(model.definition.remarks))
    blobs = [node.arrays for node in graph.nodes]
    return Shrunk(replace(model, definition=definition, blobs=blobs), lost, held)


def with_data(model: UnmaskedModel, param: NetParameter) -> UnmaskedModel:
    """The model with the data layers of `param` in the place of the inputs that stood for them.

    `param` is the definition that the model was made of, its order kept.
    """
    layers = {layer.name: layer for layer in model.definition.param.layer}
    made = dict(zip(layers, model.blobs, strict=True))
    sources = {layer.name: layer for layer in data_layers(param)}
    layers |= sources
    made |= {name: [] for name in sources}
    names = [layer.name for layer in param.layer if layer.name in layers]
    result = NetParameter(name=param.name, layer=[layers[name] for name in names])
    return replace(model, definition=Deployment(result), blobs=[made[name] for name in names])


def _find_idle(graph: Graph) -> list[Rule]:
    """Mark all channels without which the outputs could be computed; returns the layers' rules."""
    rules = []
    for node in graph.nodes:
        rules.append(rule_for(node))
        rules[-1].put_axes(node)
        rules[-1].find_constants(node)
    outputs = [channels for channels in graph.channels if not channels.readers]
    for node in graph.nodes:
        # What counts as a loss is an output, too, where the definition has its losses.
        outputs += [
            top for top, weight in zip(node.tops, node.param.loss_weight, strict=False) if weight
        ]
    for channels in outputs:
        channels.needed[:] = True
    for node, rule in zip(reversed(graph.nodes), reversed(rules), strict=True):
        rule.find_needs(node)
    for channels in graph.channels:
        channels.removed = channels.is_constant | ~channels.needed
    for channels in outputs:
        channels.removed[:] = False
    return rules


def _settle(graph: Graph, rules: list[Rule]) -> None:
    """Let channels stay until all layers agree on the others, which only become fewer."""
    pairs = list(zip(graph.nodes, rules, strict=True))
    left, before = _count_removed(graph), -1
    while left != before:
        for node, rule in (*pairs, *reversed(pairs)):
            rule.agree(node)
        for channels in graph.channels:
            if channels.removed.all():
                channels.removed[0] = False
        left, before = _count_removed(graph), left


def _count_removed(graph: Graph) -> int:
    return sum(int(channels.removed.sum()) for channels in graph.channels)


def _lost(node: Node) -> str:
    before, after = (sum(map(len, lengths)) for lengths in (node.tops, [t.kept for t in node.tops]))
    return f"{node.param.name}: {after} of {before} outputs"
