"""What `dns train` writes of a net that it pruned: a model without masks, and its size."""

from __future__ import annotations

from dataclasses import dataclass

from caffe_dns import log
from caffe_dns.cli.provenance import command_line
from caffe_dns.cli.snapshots import keeps_files
from caffe_dns.errors import CaffeError
from caffe_dns.export.caffemodel import to_caffemodel
from caffe_dns.export.deploy import deploy
from caffe_dns.export.inputs import data_layers
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.files import write_atomically
from caffe_dns.layers.base import Context, Shape
from caffe_dns.net.definition import filter_layers, with_state
from caffe_dns.proto.caffe_pb2 import TEST, NetParameter
from caffe_dns.reports.kept import count_kept
from caffe_dns.solver.nets import test_definition
from caffe_dns.solver.solver import Solver


@dataclass(frozen=True)
class _Taken:
    """A pruned net at one moment: the model, or why there is none, and its remaining size."""

    model: UnmaskedModel | CaffeError
    kept: int
    total: int


class PrunedNet:
    """Observes a run, and writes the pruned net at its end.

    It is the net of the last snapshot: a later display may change masks and statistics.
    """

    def __init__(self, trainer: Solver) -> None:
        self._trainer = trainer
        self._taken: _Taken | None = None
        before = trainer.on_snapshot

        def noted(iteration: int, state: str) -> None:
            before(iteration, state)
            if iteration == trainer.param.max_iter:
                self._taken = _take(trainer)

        trainer.on_snapshot = noted

    def write(self) -> None:
        """Write PREFIX_pruned.caffemodel and .prototxt, if surgery pruned anything.

        Their layers are those of plain Caffe; the log says what they contain and how to use them. A
        net that cannot be deployed gets only a warning, because its snapshots have been written.
        """
        param = self._trainer.param
        taken = self._taken or _take(self._trainer)
        if taken is None:
            return
        prefix = f"{param.snapshot_prefix}_pruned"
        model, definition = f"{prefix}.caffemodel", f"{prefix}.prototxt"
        try:
            if isinstance(taken.model, CaffeError):
                raise taken.model
            raw = to_caffemodel(taken.model)
        except CaffeError as error:
            log.warning(f"No {model} is written: {error}")
            return
        write_atomically(definition, taken.model.definition.to_text().encode())
        write_atomically(model, raw)
        log.info(
            f"Pruned net: {model} has {taken.kept} of {taken.total} parameters that are not zero, "
            f"and no masks; {definition} defines it for use, in layers of plain Caffe"
        )
        tested = param.net or next(iter(param.test_net), "")
        if tested:
            command = command_line("test", "--model", tested, "--weights", model)
            log.info(f"Pruned net: score it by {command}")
        log.info(f"Pruned net: make it small by {shrink_command(param.snapshot_prefix)}")


def _take(trainer: Solver) -> _Taken | None:
    """The current net, if surgery has pruned anything."""
    if not keeps_files(trainer.param) or not _is_pruned(trainer):
        return None
    counts = count_kept(trainer.net)
    kept, total = sum(c.kept for c in counts), sum(c.total for c in counts)
    try:
        return _Taken(plain_model(trainer), kept, total)
    except CaffeError as error:
        return _Taken(error, kept, total)


def shrink_command(prefix: str) -> str:
    """The command that shrinks the pruned net of a run with this prefix."""
    given = ("--model", f"{prefix}_pruned.prototxt", "--weights", f"{prefix}_pruned.caffemodel")
    return command_line("export", *given, "--shrink", "--output", f"{prefix}_small.caffemodel")


def _is_pruned(trainer: Solver) -> bool:
    if trainer.surgeon is None:
        return False
    return any(layer.kept() < layer.size for layer in trainer.surgeon.masked_layers)


def plain_model(trainer: Solver) -> UnmaskedModel:
    """The trained net without masks. Raises CaffeError if it cannot be deployed."""
    with log.silenced:
        return _find_model(trainer)


def _find_model(trainer: Solver) -> UnmaskedModel:
    definition = test_definition(trainer.param).param
    context = Context(allow_python_layers=trainer.net.context.allow_python_layers)
    level, stages = definition.state.level, list(definition.state.stage)
    # As when nets are built: the solver's state counts, and the definition's not twice.
    definition.ClearField("state")
    shapes = _item_shapes(trainer, filter_layers(with_state(definition, TEST, level, stages))[0])
    described = deploy(definition, shapes=shapes, level=level, stages=stages, context=context)
    return UnmaskedModel.of_net(described, trainer.net)


def _item_shapes(trainer: Solver, tested: NetParameter) -> list[Shape]:
    """The shapes of data layers' tops, from a net that has read them; none if they differ."""
    net = (*trainer.test_nets, trainer.net)[0]
    known = [net.blob_shapes[layer.top[0]][1:] for layer in data_layers(net.param) if layer.top]
    return known if len(known) == len(data_layers(tested)) else []
