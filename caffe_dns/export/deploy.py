"""From a definition for training and testing to one for deployment: inputs in, probabilities out.

Data layers become Input layers, losses become the layer that turns scores into probabilities, and
layers that only judge scores are dropped, along with their labels. Weights are not touched here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from caffe_dns.errors import CaffeError
from caffe_dns.export.inputs import ItemShape, data_layers, replace_data, set_batch
from caffe_dns.export.standard_layers import standard_layer
from caffe_dns.layers import layer_types
from caffe_dns.layers.base import Context
from caffe_dns.net.definition import filter_layers, insert_splits, with_state
from caffe_dns.net.names import check_names_of
from caffe_dns.net.places import Places
from caffe_dns.net.unknown_types import check_types
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, LayerParameter, NetParameter, Phase
from caffe_dns.proto.text import to_text

#: Layers that only judge the results of others.
_JUDGES = {"Accuracy", "DetectionEvaluate"}
#: And those that silence or store it.
_WITHOUT_USE = _JUDGES | {"Silence", "HDF5Output"}
#: Layer types that compute, from a loss's scores, what it compares with the label; and the message
#: with their axis.
_HEADS = {
    "SoftmaxWithLoss": ("Softmax", "softmax_param"),
    "InfogainLoss": ("Softmax", "infogain_loss_param"),
    "SigmoidCrossEntropyLoss": ("Sigmoid", None),
}
#: Layers with weights: their tops are computed by the net, everything else may be a label.
_LEARNING = {
    "Convolution",
    "CConvolution",
    "DepthwiseConvolution",
    "ConvolutionDepthwise",
    "Deconvolution",
    "InnerProduct",
    "CInnerProduct",
    "Embed",
    "Scale",
    "Bias",
    "BatchNorm",
    "BN",
    "Normalize",
    "PReLU",
    "Parameter",
    "RNN",
    "LSTM",
}


@dataclass
class Deployment:
    """A definition for deployment, and remarks for its users."""

    param: NetParameter
    remarks: list[str] = field(default_factory=list)
    #: The layers' places in the original file, if there is one.
    places: Places | None = None

    def to_text(self) -> str:
        """The definition as a file, with the remarks as comments at its head."""
        lines = [line for remark in self.remarks for line in remark.splitlines()]
        return "".join(f"# {line}\n" for line in lines) + to_text(self.param)


def deploy(
    param: NetParameter,
    *,
    batch: int = 1,
    shapes: Sequence[ItemShape] = (),
    level: int = 0,
    stages: Sequence[str] = (),
    all_losses: bool = False,
    context: Context | None = None,
    places: Places | None = None,
) -> Deployment:
    """The net of the TEST phase for deployment, with standard layer types and without fillers.

    Every input gets `batch` items. Data layers are asked for the shape of an item, unless `shapes`
    gives one for each (without the batch). Of several losses only those with the highest
    loss_weight stay, unless `all_losses`. Raises CaffeError when nothing is left, when nothing
    brings data in, for layers of unknown types, and for those of one name with weights; `places`
    knows their lines.
    """
    test = _phase(param, TEST, level, stages)
    known_places = places or Places(param)
    check_types(test, known_places)
    if not _data_or_inputs(test):
        raise CaffeError(_no_data(param))
    losses = _losses(test)
    if not losses:
        losses = _training_losses(_phase(param, TRAIN, level, stages), test)
    chosen = losses if all_losses else _heaviest(losses)
    result = Deployment(NetParameter(), places=places)
    result.remarks += _transforms(test)
    if len(chosen) < len(losses):
        names = ", ".join(loss.name for loss in losses if loss not in chosen)
        result.remarks.append(f"Left out, as its loss_weight is lower: {names}")
    cleaned = _without_labels(replace_data(test, TEST, shapes, context), losses)
    set_batch(cleaned, batch)
    roots = _add_heads(cleaned, chosen)
    if not losses:
        roots += _judged(test)
    spare = {blob for layer in losses for blob in layer.bottom}
    roots += [blob for blob in _outputs(test) if blob not in spare]
    result.param = _leading_to(cleaned, roots)
    if not any(layer.bottom for layer in result.param.layer):
        raise CaffeError("nothing is left to deploy: no layer leads from an input to an output")
    with_weights = [layer.name for layer in result.param.layer if layer.type in _LEARNING]
    check_names_of(result.param, dict.fromkeys(with_weights, "has weights"), known_places)
    insert_splits(result.param)  # where a bottom is missing, it says so
    return result


def _data_or_inputs(param: NetParameter) -> list[LayerParameter]:
    return [*data_layers(param), *(layer for layer in param.layer if layer.type == "Input")]


def _no_data(param: NetParameter) -> str:
    """The error about a net without data."""
    rules = [rule for layer in _data_or_inputs(param) for rule in layer.include]
    stages = dict.fromkeys(stage for rule in rules for stage in rule.stage)
    message = "no layer brings data into the net of the phase TEST"
    if stages:
        message += f"; layers do in the stages {', '.join(stages)}: --stage {next(iter(stages))}"
    elif any(rule.phase == TRAIN for rule in rules):
        message += "; those that there are include the phase TRAIN only"
    return message


def _phase(param: NetParameter, phase: Phase, level: int, stages: Sequence[str]) -> NetParameter:
    return filter_layers(with_state(param, phase, level, stages))[0]


# Losses -----------------------------------------------------------------------------------------


def _losses(param: NetParameter) -> list[LayerParameter]:
    """The layers of loss types, and those with a loss_weight that have no other use.

    A loss_weight on a layer that learns, or that others read, only adds a term to the loss.
    """
    read = {blob for layer in param.layer for blob in layer.bottom}
    return [
        layer
        for layer in param.layer
        if (layer.type in layer_types and layer_types[layer.type].is_loss)
        or (any(layer.loss_weight) and layer.type not in _LEARNING and read.isdisjoint(layer.top))
    ]


def _training_losses(train: NetParameter, test: NetParameter) -> list[LayerParameter]:
    """The losses of a net that is tested without one, if their scores exist in the test."""
    tops = {top for layer in test.layer for top in layer.top}
    return [layer for layer in _losses(train) if tops.issuperset(layer.bottom[:1])]


def _heaviest(losses: list[LayerParameter]) -> list[LayerParameter]:
    weights = [loss.loss_weight[0] if loss.loss_weight else 1.0 for loss in losses]
    return [loss for loss, weight in zip(losses, weights, strict=True) if weight == max(weights)]


def _add_heads(param: NetParameter, losses: list[LayerParameter]) -> list[str]:
    """Append layers that turn losses' scores into probabilities; returns the outputs to keep."""
    learned = _learned(param)
    heads = [loss for loss in losses if loss.type in _HEADS]
    outputs = []
    for loss in losses:
        found = _boxes_found(param, loss)
        if found:
            outputs += found
            continue
        if loss.type not in _HEADS:
            tops = {top for layer in param.layer for top in layer.top}
            scores = [blob for blob in loss.bottom if blob in learned]
            outputs += scores or [blob for blob in loss.bottom[:1] if blob in tops]
            continue
        kind, _ = _HEADS[loss.type]
        there = [x for x in param.layer if x.type == kind and x.bottom[0] == loss.bottom[0]]
        if there:
            outputs.append(there[0].top[0])
            continue
        name = "prob" if len(heads) == 1 else f"prob_{loss.name}"
        taken = {top for layer in param.layer for top in (*layer.top, layer.name)}
        if name in taken:
            name = f"{loss.name}_prob"
        param.layer.append(_head(loss, name, name))
        outputs.append(name)
    return outputs


def _head(loss: LayerParameter, name: str, top: str) -> LayerParameter:
    """The layer that turns a loss's scores into probabilities."""
    kind, settings = _HEADS[loss.type]
    head = LayerParameter(name=name, type=kind, bottom=[loss.bottom[0]], top=[top])
    axis = getattr(loss, settings).axis if settings else 1
    if axis != 1:
        head.softmax_param.axis = axis
    return head


def _boxes_found(param: NetParameter, loss: LayerParameter) -> list[str]:
    """A detector's output, if the net has a layer that computes it from this loss's bottoms."""
    if loss.type != "MultiBoxLoss":
        return []
    predictions = loss.bottom[:1]
    readers = [layer for layer in param.layer if layer.type == "DetectionOutput"]
    return [layer.top[0] for layer in readers if layer.bottom[:1] == predictions]


# Labels -----------------------------------------------------------------------------------------


def _learned(param: NetParameter) -> set[str]:
    """The blobs that depend on weights."""
    learned: set[str] = set()
    for layer in param.layer:
        if layer.type in _LEARNING or learned.intersection(layer.bottom):
            learned.update(layer.top)
    return learned


def _sources(param: NetParameter) -> dict[str, set[str]]:
    """For every blob, the tops of layers without bottoms that it depends on."""
    sources: dict[str, set[str]] = {}
    for layer in param.layer:
        found = {source for blob in layer.bottom for source in sources.get(blob, ())}
        for top in layer.top:
            sources[top] = sources.get(top, set()) | (found if layer.bottom else {top})
    return sources


def _without_labels(param: NetParameter, losses: list[LayerParameter]) -> NetParameter:
    """The net without losses and judges, and without what depends on these or on a label."""
    judges = _losses(param) + [layer for layer in param.layer if layer.type in _WITHOUT_USE]
    learned, sources = _learned(param), _sources(param)
    scores: set[str] = set()
    targets: set[str] = set()
    for layer in [*judges, *losses]:
        used = learned.intersection(layer.bottom) or set(layer.bottom[:1])
        if layer.type == "Silence":
            used = learned.intersection(layer.bottom)
        scores |= used
        targets |= set(layer.bottom) - used
    data = {source for blob in scores for source in sources.get(blob, ())}
    tainted = {source for blob in targets for source in sources.get(blob, ())} - data
    result = NetParameter(name=param.name)
    read = {blob for layer in param.layer if layer not in judges for blob in layer.bottom}
    for layer in param.layer:
        if layer in judges or tainted.intersection(layer.bottom):
            tainted.update(layer.top)
            if layer.type in _HEADS and read.intersection(layer.top[1:]):
                # Its probabilities do not depend on the label.
                result.layer.append(_head(layer, layer.name, layer.top[1]))
                tainted.discard(layer.top[1])
        else:
            result.layer.add().CopyFrom(layer)
    return result


# Outputs ----------------------------------------------------------------------------------------


def _outputs(param: NetParameter) -> list[str]:
    """The blobs that nothing reads, except those of losses, judges and layers without bottoms."""
    unread: dict[str, None] = {}
    losses = _losses(param)
    for layer in param.layer:
        for blob in layer.bottom:
            unread.pop(blob, None)
        if layer.bottom and layer.type not in _WITHOUT_USE and layer not in losses:
            unread.update(dict.fromkeys(layer.top))
    return list(unread)


def _judged(param: NetParameter) -> list[str]:
    """The blobs that the judges of a net without losses read."""
    return [layer.bottom[0] for layer in param.layer if layer.type in _JUDGES]


def _leading_to(param: NetParameter, outputs: Sequence[str]) -> NetParameter:
    """The layers that the outputs need, in standard types."""
    needed = set(outputs)
    kept: list[LayerParameter] = []
    for layer in reversed(param.layer):
        if layer.type == "Input":
            layer = _narrow_input(layer, needed)
        if needed.intersection(layer.top):
            needed.update(layer.bottom)
            kept.append(standard_layer(layer))
    return NetParameter(name=param.name, layer=reversed(kept))


def _narrow_input(layer: LayerParameter, needed: set[str]) -> LayerParameter:
    """An Input layer with only the tops that are needed."""
    shapes = list(layer.input_param.shape)
    if len(shapes) < len(layer.top):
        shapes *= len(layer.top)
    kept = [i for i, top in enumerate(layer.top) if top in needed]
    result = LayerParameter(name=layer.name, type=layer.type, top=[layer.top[i] for i in kept])
    result.input_param.shape.extend(shapes[i] for i in kept if shapes)
    return result


def _transforms(param: NetParameter) -> list[str]:
    """Remarks on what the data layers did, which the user of the inputs has to do now."""
    remarks = []
    for layer in data_layers(param):
        settings = " ".join(to_text(layer.transform_param).split())
        if settings:
            top = layer.top[0]
            remarks.append(f"{top}: has to come as the layer '{layer.name}' made it: {settings}")
    return remarks
