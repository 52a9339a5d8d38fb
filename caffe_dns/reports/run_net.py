"""The net of a run with its trained weights, built without its data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.export.deploy import deploy
from caffe_dns.export.inputs import ItemShape, data_layers, replace_data
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.layers.base import Context
from caffe_dns.layers.masked import MagnitudeMasks
from caffe_dns.net import Net
from caffe_dns.net.definition import filter_layers, with_state
from caffe_dns.proto.caffe_pb2 import TRAIN, NetParameter
from caffe_dns.proto.upgrade import read_weights, upgrade_net
from caffe_dns.reports.run_files import RunFiles
from caffe_dns.solver.nets import train_definition
from caffe_dns.solver.state_file import read_state
from caffe_dns.weights import fit_definition, load_weights, weight_files


@dataclass
class RunNet:
    """A net as it is trained. `thresholds` are those in force, by layer, in its own terms."""

    net: Net
    thresholds: dict[str, float]
    definition: NetParameter
    #: The shapes of an item that each data layer gives; none if the data say so themselves.
    shapes: list[ItemShape]
    trained: bool

    def unmasked(self) -> UnmaskedModel:
        """The same without masks, for use. Raises CaffeError where that cannot be made."""
        definition = NetParameter()
        definition.CopyFrom(self.definition)
        definition.ClearField("state")
        for layer in definition.layer:  # those of training alone are all that is here
            layer.ClearField("include")
            layer.ClearField("exclude")
        with log.hushed:  # data layers, which may be asked for their shapes
            return UnmaskedModel.of_net(deploy(definition, shapes=self.shapes), self.net)


def load_run_net(files: RunFiles, shapes: list[ItemShape]) -> RunNet:
    """Build the net and fill it.

    Shapes of data are those given, else those of the log, else what the data say. Raises CaffeError
    when there is no definition, when the data would be needed, or the weights do not fit.
    """
    with log.hushed:
        return _load(files, shapes)


def _load(files: RunFiles, shapes: list[ItemShape]) -> RunNet:
    definition = _definition(files)
    known = shapes or _logged_shapes(files, definition)
    param = fit_definition(definition, weight_files(files.weights) if files.weights else ())
    net = Net(replace_data(param, TRAIN, known), Context(surgery=_has_surgery(files)))
    if files.weights:
        load_weights(net, files.weights)
    return RunNet(net, _thresholds(files, net), definition, known, bool(files.weights))


def _has_surgery(files: RunFiles) -> bool:
    """Whether the run had masks: not where there is a log of it that says nothing of them."""
    run = files.log.run
    return run.is_empty() or bool(run.sparsities)


def _definition(files: RunFiles) -> NetParameter:
    """The layers of the training net: as logged, as the solver names them, or of the model."""
    if files.log.net is not None:
        return filter_layers(upgrade_net(files.log.net, files.name))[0]
    if files.log.solver is not None:
        state = files.log.solver.train_state
        found = train_definition(files.log.solver)
        return filter_layers(with_state(found, TRAIN, state.level, list(state.stage)))[0]
    if not files.weights or not files.weights.endswith(".caffemodel"):
        raise CaffeError("there is no definition: a log, a solver or a .caffemodel has one")
    definition = read_weights(files.weights)
    for layer in definition.layer:
        del layer.blobs[:]
    return filter_layers(with_state(definition, TRAIN))[0]


def _logged_shapes(files: RunFiles, definition: NetParameter) -> list[ItemShape]:
    """What the log says of the tops of all data layers; nothing if it does not tell of each."""
    found = [files.log.shapes.get(layer.name) for layer in data_layers(definition)]
    return [tuple(shape[1:] for shape in tops) for tops in found if tops] if all(found) else []


def _thresholds(files: RunFiles, net: Net) -> dict[str, float]:
    """Those of the state, which also has the moments of layers of the official kind."""
    if not files.state:
        return {}
    entries = {entry.layer: entry for entry in read_state(files.state)[0].surgery_moments}
    for step in net.steps:
        entry = entries.get(step.layer.name)
        if isinstance(step.layer, MagnitudeMasks) and entry is not None and entry.HasField("mu"):
            step.layer.moments.copy_(torch.tensor([entry.mu, entry.sigma]))
    return {name: e.threshold for name, e in entries.items() if e.HasField("threshold")}
