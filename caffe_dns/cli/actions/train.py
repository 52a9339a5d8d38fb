"""`dns train`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import click

from caffe_dns import log
from caffe_dns.cli import flags
from caffe_dns.cli.bits import BitsFlag
from caffe_dns.cli.card import Card, Stamp, stamp
from caffe_dns.cli.definitions import require_data
from caffe_dns.cli.latency import LatencyTarget, tell_latency
from caffe_dns.cli.launch import as_rank, launch
from caffe_dns.cli.live_report import LiveReport, with_report
from caffe_dns.cli.progress import Progress
from caffe_dns.cli.provenance import log_head, log_seed
from caffe_dns.cli.pruned import PrunedNet
from caffe_dns.cli.pruning import Pruning
from caffe_dns.cli.snapshots import Snapshots, alone_with_prefix, keeps_files
from caffe_dns.cli.target import find_target
from caffe_dns.device.determinism import always_the_same_bits
from caffe_dns.device.precision import use_precision
from caffe_dns.device.selection import parse_gpus, training_device
from caffe_dns.encoding import in_message
from caffe_dns.errors import CaffeError
from caffe_dns.parallel.ranks import JoinedRanks
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.text import Parsed
from caffe_dns.proto.upgrade import read_solver
from caffe_dns.solver.observers import SideFile, SurgeryTable
from caffe_dns.solver.signals import SignalHandler, parse_action
from caffe_dns.solver.snapshot_files import warn_of_overwriting
from caffe_dns.solver.solver import Solver
from caffe_dns.solver.tensorboard import TensorBoard, check_tensorboard
from caffe_dns.weights import weight_files


@as_rank
@with_report
def run(
    solver: str,
    weights: str,
    snapshot: str,
    resume: str | None,
    keep: int | None,
    gpu: str,
    precision: str,
    level: int,
    stage: str,
    sigint_effect: str,
    sighup_effect: str,
    on_nan: str,
    skip_bad_records: int,
    decode_on_gpu: bool,
    deterministic: bool,
    no_surgery: bool,
    allow_python_layers: bool,
    tensorboard: str,
    target_sparsity: str,
    target_compression: float | None,
    target_macs: float | None,
    target_latency: str,
    pattern: str,
    hold_masks: bool,
    masks_from_zeros: bool,
    bits: BitsFlag,
    loss: float | None,
    ranks: JoinedRanks | None,
    page: LiveReport | None,
    **unused: object,
) -> int:
    """Do what `dns train` is asked for, by the values of its flags."""
    if not solver:
        raise CaffeError("train needs a solver definition: --solver FILE")
    snapshots = Snapshots(snapshot, resume, keep)
    if snapshot and weights:
        raise CaffeError("give -snapshot to resume training or -weights to finetune, but not both")
    latency = LatencyTarget.parse(target_latency)
    target = find_target(target_sparsity, target_compression, target_macs, latency, pattern)
    pruning = Pruning(not no_surgery, target, hold_masks, masks_from_zeros, bits, loss, latency)
    if tensorboard:
        check_tensorboard(tensorboard)
    handler = _signal_handler(sigint_effect, sighup_effect)
    gpus = parse_gpus(gpu) if ranks is None else []
    pruning.check_alone(ranks is None and len(gpus) < 2)
    if len(gpus) > 1:
        return launch(click.get_current_context().obj, gpus)
    log_head(click.get_current_context().obj)
    state = snapshots.find_state(solver, ranks)
    definition, param = _read_solver(solver, weights, state, level, stage)
    beside = _files_beside(param, tensorboard, page)
    pruning.plan(param, resumed=bool(state))
    device = training_device(gpu, param, ranks.world if ranks else None)
    if ranks is not None:
        ranks.use(device)
    build = partial(
        _build,
        definition,
        pruning,
        device=device,
        surgery=not no_surgery,
        allow_python_layers=allow_python_layers,
        activations=use_precision(precision, device),
        ranks=ranks,
        on_nan=on_nan,
        skip_bad_records=skip_bad_records,
        decode_on_gpu=decode_on_gpu,
    )
    pruning.measure(param, build)
    trainer = build(param)
    log_seed(trainer.seed, given=trainer.seed_given)
    with closing(trainer):
        _begin(trainer, state, pruning, snapshots)
        with (
            _side_files(trainer, tensorboard, page) as side_files,
            always_the_same_bits(deterministic),
            alone_with_prefix(trainer),
        ):
            _solve(trainer, definition, handler, Card(trainer, solver, beside), page)
    if trainer.stopped_early and handler.exit_code:
        return handler.exit_code
    return log.LOST_OUTPUT if any(file.is_lost for file in side_files) else 0


def _signal_handler(sigint: str, sighup: str) -> SignalHandler:
    """What the flags of these names ask for."""
    return SignalHandler(
        parse_action(sigint, "sigint_effect"), parse_action(sighup, "sighup_effect")
    )


def _build(
    definition: Parsed[SolverParameter], pruning: Pruning, param: SolverParameter, **settings: Any
) -> Solver:
    """The solver of `param`; what is wrong with it is wrong in the file of its definition, or with
    the flags that have filled it."""
    try:
        return Solver(param, **settings)
    except CaffeError as error:
        if (of_flags := pruning.of_flags(error)) is not None:
            raise of_flags from None
        raise definition.locate(error).locate(file=definition.file) from None


def _begin(trainer: Solver, state: str, pruning: Pruning, snapshots: Snapshots) -> None:
    """Before the first iteration: go on from a state, or begin with masks as the flags say."""
    if state:
        log.info(f"Resuming from {state}")
        trainer.restore(state)
    else:
        pruning.begin(trainer)
    if trainer.ranks.is_root:
        snapshots.rotate(trainer, resumed=bool(state))


def _solve(
    trainer: Solver,
    definition: Parsed[SolverParameter],
    handler: SignalHandler,
    card: Card,
    page: LiveReport | None,
) -> None:
    """Train to the end, with a progress bar, heeding signals; then show the card."""
    for net in (trainer.net, *trainer.test_nets):
        require_data(net, trainer.param.net or trainer.param.train_net or card.solver)
    weights = [file for entry in trainer.param.weights for file in weight_files(entry)]
    warn_of_overwriting(trainer.param, weights, trainer.iteration)
    log.info("Starting Optimization")
    shown = trainer.ranks.is_root
    pruned = PrunedNet(trainer)
    with handler, Progress("Training", trainer.param.max_iter, shown=shown) as progress:
        progress.advance(trainer.iteration)
        trainer.poll = handler.poll
        trainer.on_iteration = lambda: progress.advance(trainer.iteration)
        try:
            trainer.solve()
        except CaffeError as error:
            raise definition.locate(error) from None
    if shown and trainer.iteration == trainer.param.max_iter:
        pruned.write()
        tell_latency(trainer)
        if page is not None:
            page.finish()
    log.info("Optimization Done.")
    if shown:
        card.show()


@contextmanager
def _side_files(
    trainer: Solver, tensorboard: str, page: LiveReport | None
) -> Iterator[list[SideFile]]:
    """What rank 0 writes meanwhile: the page, the table beside snapshots, TensorBoard's files."""
    files: list[SideFile] = []
    param = trainer.param
    if page is not None:
        files.append(SideFile(page.file, page.watching(trainer)))
    if trainer.ranks.is_root and keeps_files(param):
        table = f"{param.snapshot_prefix}_surgery.csv"
        files.append(SideFile(table, SurgeryTable(table)))
    if trainer.ranks.is_root and tensorboard:
        writer = TensorBoard(tensorboard, trainer.net, param, trainer.iteration)
        files.append(SideFile(tensorboard, writer))
    trainer.observers.extend(files)
    try:
        yield files
    finally:
        for file in files:
            file.close()


def _files_beside(
    param: SolverParameter, tensorboard: str, page: LiveReport | None
) -> dict[str, Stamp]:
    """What a run may write besides its snapshots, each with what is there by now."""
    endings = (
        "surgery.csv",
        "target_solver.prototxt",
        "bits_solver.prototxt",
        "pruned.caffemodel",
        "pruned.prototxt",
    )
    beside = [f"{param.snapshot_prefix}_{ending}" for ending in endings]
    files = [
        *(beside if keeps_files(param) else []),
        *([tensorboard] if tensorboard else []),
        *([page.file] if page else []),
    ]
    return {file: stamp(file) for file in files}


def _read_solver(
    solver: str, weights: str, snapshot: str, level: int, stage: str
) -> tuple[Parsed[SolverParameter], SolverParameter]:
    """The solver definition in its file, and its message with what the flags say on top."""
    definition = read_solver(solver)
    param = definition.message
    param.train_state.level = level
    param.train_state.stage.extend(flags.stages(stage))
    if snapshot or weights:
        param.ClearField("weights")
    if weights:
        param.weights.append(in_message(weights))
    return definition, param
