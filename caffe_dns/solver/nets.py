"""Which nets a solver definition names: one to train, any number to test (`Solver::InitTrainNet`,
`Solver::InitTestNets` in solver.cpp).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from caffe_dns import log
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Context
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, NetParameter, NetState, SolverParameter
from caffe_dns.proto.positions import Positions
from caffe_dns.proto.upgrade import read_net, upgrade_net
from caffe_dns.weights import (
    copy_trained_layers,
    fit_definition,
    load_definition_blobs,
    weight_files,
)

_TRAIN_FIELDS = ("net", "net_param", "train_net", "train_net_param")


@dataclass
class Definition:
    """A net's definition in the current form, and the positions of its lines in its file."""

    param: NetParameter
    file: str | None = None
    positions: Positions | None = None


@dataclass
class Source:
    """Where a net's definition comes from; `title` is its name in the log.

    A `file` is named by the solver's field `field`.
    """

    title: str
    param: NetParameter | None = None
    file: str | None = None
    field: str = "net"

    def read(self) -> Definition:
        if self.file is not None:
            if not os.path.exists(on_disk(self.file)):
                raise CaffeError(f"{self.file}: there is no such file", field=self.field)
            if os.path.isdir(on_disk(self.file)):
                raise CaffeError(f"{self.file}: is a directory, not a file", field=self.field)
            parsed = read_net(self.file)
            return Definition(parsed.message, self.file, parsed.positions)
        param = NetParameter()
        if self.param is not None:
            param.CopyFrom(self.param)
        return Definition(upgrade_net(param, self.title))


def build_train_net(param: SolverParameter, context: Context) -> Net:
    """The training net, with the weights that the solver definition names."""
    source = _train_source(param)
    log.info(f"Creating training net {source.title}")
    net = _build(_read(source, param), NetState(phase=TRAIN), param.train_state, context)
    _load(net, param)
    return net


def train_definition(param: SolverParameter) -> NetParameter:
    """The definition of the training net, all of its layers."""
    return _read(_train_source(param), param).param


def test_definition(param: SolverParameter) -> Definition:
    """The definition by which the net is first tested, or else trained; its state is the test's."""
    sources = _test_sources(param)
    definition = _read(sources[0] if sources else _train_source(param), param)
    wanted = param.test_state[0] if param.test_state else NetState()
    definition.param.state.MergeFrom(wanted)
    return definition


def build_test_nets(param: SolverParameter, contexts: list[Context]) -> list[Net]:
    """One net for each test_iter, in Caffe's order."""
    sources = _test_sources(param)
    nets = []
    # All are read before the first is built, as the log shows.
    for index, definition in enumerate([_read(source, param) for source in sources]):
        log.info(f"Creating test net (#{index}) specified by {sources[index].title}")
        wanted = param.test_state[index] if param.test_state else NetState()
        net = _build(definition, NetState(phase=TEST), wanted, contexts[index])
        _load(net, param)
        nets.append(net)
    return nets


def _read(source: Source, param: SolverParameter) -> Definition:
    """The definition, with the sizes of shrunk nets whose weights the solver definition names."""
    definition = source.read()
    files = [file for names in param.weights for file in weight_files(names)]
    fitted = fit_definition(definition.param, files)
    return definition if fitted == definition.param else Definition(fitted, definition.file)


def _build(definition: Definition, state: NetState, wanted: NetState, context: Context) -> Net:
    """Build a net; its state is the solver's default, the definition's, then the wanted one."""
    param = NetParameter()
    param.CopyFrom(definition.param)
    state.MergeFrom(param.state)
    state.MergeFrom(wanted)
    param.state.CopyFrom(state)
    net = Net(param, context, file=definition.file, positions=definition.positions)
    load_definition_blobs(net)
    return net


def _load(net: Net, param: SolverParameter) -> None:
    for files in param.weights:
        for file in weight_files(files):
            log.info(f"Finetuning from {file}")
            copy_trained_layers(net, file)


def _train_source(param: SolverParameter) -> Source:
    given = [field for field in _TRAIN_FIELDS if param.HasField(field)]
    if len(given) != 1:
        what = " and ".join(given) or "none"
        raise CaffeError(
            f"the train net must be given by exactly one of {', '.join(_TRAIN_FIELDS)}; "
            f"this file has {what}"
        )
    if given[0] == "train_net_param":
        return Source("specified in train_net_param.", param.train_net_param)
    if given[0] == "net_param":
        return Source("specified in net_param.", param.net_param)
    if given[0] == "train_net":
        title = f"from train_net file: {param.train_net}"
        return Source(title, file=param.train_net, field="train_net")
    return Source(f"from net file: {param.net}", file=param.net)


def _test_sources(param: SolverParameter) -> list[Source]:
    sources = [Source("test_net_param", definition) for definition in param.test_net_param]
    sources += [
        Source(f"test_net file: {file}", file=file, field=f"test_net[{index}]")
        for index, file in enumerate(param.test_net)
    ]
    named, wanted = len(sources), len(param.test_iter)
    generic: Source | None = None
    if param.HasField("net_param"):
        generic = Source("net_param", param.net_param)
    elif param.HasField("net"):
        generic = Source(f"net file: {param.net}", file=param.net)
    if wanted < named or (generic is None and wanted != named):
        raise CaffeError(
            f"given {wanted} time(s) for {named} test net(s); once for each would be right",
            field="test_iter",
        )
    if generic is not None:
        sources += [generic] * (wanted - named)
    if param.test_state and len(param.test_state) != wanted:
        raise CaffeError(
            f"given {len(param.test_state)} time(s) for {wanted} test net(s); "
            "once for each, or not at all, would be right",
            field="test_state",
        )
    if wanted and param.test_interval <= 0:
        raise CaffeError("must be positive, as there is a test_iter", field="test_interval")
    if any(count < 0 for count in param.test_iter):
        raise CaffeError("must not be negative", field="test_iter")
    return sources
