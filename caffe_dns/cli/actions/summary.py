"""`dns summary`."""

from __future__ import annotations

from caffe_dns import log
from caffe_dns.cli import definitions
from caffe_dns.cli.output import Output, with_output
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Context
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import Phase
from caffe_dns.reports.summary import summarize, to_table
from caffe_dns.weights import load_definition_blobs, load_weights


@with_output
def run(
    model: str,
    weights: str,
    phase: str,
    shape: tuple[str, ...],
    shrink: bool,
    fold: bool,
    level: int,
    stage: str,
    allow_python_layers: bool,
    output: Output,
) -> None:
    """Do what `dns summary` is asked for, by the values of its flags."""
    if not model:
        raise CaffeError("summary needs a model definition: --model FILE")
    if phase not in ("TRAIN", "TEST"):
        raise CaffeError(f"--phase must be TRAIN or TEST, not '{phase}'")
    context = Context(allow_python_layers=allow_python_layers)
    if shrink or fold:
        if phase != "TEST" or not weights:
            raise CaffeError("--shrink and --fold need model weights, and the phase TEST")
        shapes = definitions.parse_shapes(shape)
        _, given = definitions.load_unmasked(model, weights, shapes, level, stage, context)
        said: list[str] = []
        reduced = definitions.reduce_model(given, shrink=shrink, fold=fold, say=said.append)
        _tell(reduced.to_net(), True, output)
        for line in ("", *said):
            output.line(line)
        return
    with log.silenced:
        net = _build(model, weights, Phase.Value(phase), shape, level, stage, context)
        if weights:
            load_weights(net, weights)
    _tell(net, bool(weights), output)


def _tell(net: Net, trained: bool, output: Output) -> None:
    layers = summarize(net)
    for line in to_table(layers, trained=trained):
        output.line(line)
    counted = ("parameters", "kept", "macs", "macs_kept") if trained else ("parameters", "macs")
    rows = [
        {name: getattr(layer, name) for name in ("name", "type", "shapes", *counted)}
        for layer in layers
    ]
    output.result({"layers": rows, **{name: sum(row[name] for row in rows) for name in counted}})


def _build(
    model: str,
    weights: str,
    phase: Phase,
    shape: tuple[str, ...],
    level: int,
    stage: str,
    context: Context,
) -> Net:
    """The net of this phase, with inputs in the place of its data layers."""
    shapes = definitions.parse_shapes(shape)
    param, places = definitions.read_with_inputs(
        model, weights, phase, shapes, level, stage, context
    )[1:]
    try:
        net = Net(param, context, places=places)
        load_definition_blobs(net)
    except CaffeError as error:
        raise places.locate(error) from None
    return net
