"""How far a definition gets: read, built, run, trained for two iterations."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path

import torch

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers import layer_types
from caffe_dns.layers.base import Context
from caffe_dns.net import Net
from caffe_dns.net.definition import filter_layers, with_state
from caffe_dns.net.places import Places
from caffe_dns.net.unknown_types import check_types
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, NetParameter, SolverParameter
from caffe_dns.proto.text import Parsed
from caffe_dns.proto.upgrade import read_net, read_solver
from caffe_dns.solver.checks import check_definition
from caffe_dns.solver.solver import Solver
from tools.trials.constant_data import Guess, NoGuess, guesses, is_data, with_constant_data
from tools.trials.faults import is_graph_fault

_ITERATIONS = 2
_NET_FIELDS = {"layer", "layers", "input"}
_SOLVER_FIELDS = {"base_lr", "lr_policy", "max_iter", "train_net", "test_iter", "snapshot_prefix"}


class Step(Enum):
    """How far a file got."""

    NOTHING = "nothing"
    PARSED = "parsed"
    BUILT = "built"
    RAN = "ran"
    TRAINED = "trained"


def kind_of(path: Path) -> str:
    """`net`, `solver` or `other`, by the names of the outermost fields."""
    text = re.sub(r"#[^\n]*|\"[^\"\n]*\"", "", path.read_text("utf-8", "replace"))
    names = set()
    depth = 0
    for match in re.finditer(r"[{}]|(\w+)\s*(?=[:{])", text):
        if match[1] is None:
            depth += 1 if match[0] == "{" else -1
        elif depth == 0:
            names.add(match[1])
    if names & _NET_FIELDS:
        return "net"
    return "solver" if names & _SOLVER_FIELDS else "other"


def try_solver(path: Path, reached: Callable[[Step], None]) -> None:
    """Read a solver definition and check it. Raises CaffeError."""
    param = read_solver(path).message
    reached(Step.PARSED)
    check_definition(param)
    reached(Step.BUILT)


def try_net(
    path: Path, reached: Callable[[Step], None], upto: Step, found_code: Callable[[], None]
) -> bool:
    """Take a net through all steps up to `upto`; tells of each that succeeds.

    `found_code` is called where constant data stand for Python layers. Returns whether there is
    something to train. Raises CaffeError.
    """
    parsed = read_net(path)
    reached(Step.PARSED)
    if upto is Step.PARSED:
        return True
    net, definition = _build_in_a_state(parsed, found_code)
    reached(Step.BUILT)
    trains = any(step.needs_backward for step in net.steps)
    if upto is Step.BUILT:
        return trains
    _run(net)
    reached(Step.RAN)
    if upto is Step.TRAINED and trains:
        del net
        _train(definition)
        reached(Step.TRAINED)
    return trains


def _build_in_a_state(
    parsed: Parsed[NetParameter], found_code: Callable[[], None]
) -> tuple[Net, NetParameter]:
    """The net, and its definition, in the first state that connects its blobs.

    Raises the error of the first of all.
    """
    first: CaffeError | None = None
    for state in _promising(parsed.message):
        places = Places.of(parsed, state)
        try:
            filtered = filter_layers(state)[0]
            check_types(filtered, places)
            if any(layer.type == "Python" for layer in filtered.layer):
                found_code()
            return _build(filtered, list(guesses(parsed.message)))
        except CaffeError as error:
            first = first or places.locate(error)
            if not is_graph_fault(error):
                break
    assert first is not None
    raise first


def _promising(param: NetParameter) -> list[NetParameter]:
    """The definition in the states in which it has a loss, or data at least, or in the first."""
    states = list(_states(param))
    for wanted in (_has_loss, _has_data):
        found = []
        for state in states:
            try:
                if wanted(filter_layers(state)[0]):
                    found.append(state)
            except CaffeError:  # which building it says again
                continue
        if found:
            return found
    return states[:1]


def _states(param: NetParameter) -> Iterator[NetParameter]:
    """The definition in each phase, without stages, and in each stage that its rules name."""
    rules = [rule for layer in param.layer for rule in (*layer.include, *layer.exclude)]
    stages = dict.fromkeys(stage for rule in rules for stage in rule.stage)
    for given in dict.fromkeys([(), *((stage,) for stage in stages), tuple(stages)]):
        for phase in (TRAIN, TEST):
            yield with_state(param, phase, 0, given)


def _has_data(param: NetParameter) -> bool:
    return any(map(is_data, param.layer)) and any(layer.bottom for layer in param.layer)


def _has_loss(param: NetParameter) -> bool:
    losses = (
        layer
        for layer in param.layer
        if any(layer.loss_weight)
        or (layer.type in layer_types and layer_types[layer.type].is_loss)
        or layer.type.endswith("Loss")
    )
    return _has_data(param) and any(losses)


def _build(param: NetParameter, tries: Sequence[Guess]) -> tuple[Net, NetParameter]:
    """The net on the first data that it takes. Raises the error of those that got furthest."""
    furthest: NoGuess | None = None
    for guess in tries:
        try:
            definition = with_constant_data(param, guess)
        except NoGuess as error:
            if furthest is None or error.depth > furthest.depth:
                furthest = error
            continue
        return Net(definition, Context(surgery=False)), definition
    assert furthest is not None
    raise furthest


def _run(net: Net) -> None:
    with torch.no_grad():
        _give_statistics(net)
        blobs = net()
    wrong = [name for name in net.outputs if not blobs[name].isfinite().all()]
    if wrong:
        raise CaffeError(f"output '{wrong[0]}' is not finite")


def _give_statistics(net: Net) -> None:
    """A variance of 1 for layers that no batch has taught theirs, which else divide by 0.003."""
    for step in net.steps:
        blobs = step.layer.blobs
        if step.layer.type in ("BatchNorm", "DarknetBatchNorm"):
            blobs[1].fill_(1)
            blobs[2].fill_(1)
        elif step.layer.type == "BN" and len(blobs) == 4:
            blobs[3].fill_(1)


def _train(definition: NetParameter) -> None:
    param = SolverParameter(
        net_param=definition,
        base_lr=1e-6,
        lr_policy="fixed",
        momentum=0.9,
        max_iter=_ITERATIONS,
        random_seed=1,
        snapshot_after_train=False,
        solver_mode=SolverParameter.CPU,
    )
    param.train_state.CopyFrom(definition.state)
    solver = Solver(param, surgery=False)
    with torch.no_grad():
        _give_statistics(solver.net)
    losses: list[float] = []
    solver.on_iteration = lambda: losses.append(float(solver._losses[-1]))
    solver.step(_ITERATIONS)
    if not all(map(math.isfinite, losses)):
        raise CaffeError(f"the loss is {losses[-1]} after {_ITERATIONS} iterations")


def quietly(function: Callable[[], bool | None]) -> bool | None:
    """What the function returns; nothing is logged meanwhile."""
    with log.silenced:
        return function()
