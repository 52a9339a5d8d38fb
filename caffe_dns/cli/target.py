"""`dns train --target-...` and `--pattern`: makes a stage of surgery from flags."""

from __future__ import annotations

from caffe_dns import log
from caffe_dns.cli.latency import LatencyTarget
from caffe_dns.cli.provenance import command_line
from caffe_dns.cli.snapshots import keeps_files
from caffe_dns.errors import CaffeError
from caffe_dns.files import write_atomically
from caffe_dns.proto.caffe_pb2 import SolverParameter, SurgeryStage
from caffe_dns.proto.text import to_text
from caffe_dns.solver.solver import Solver
from caffe_dns.surgery.stages import parse_target


def find_target(
    sparsity: str,
    compression: float | None,
    macs: float | None,
    latency: LatencyTarget | None,
    pattern: str,
) -> SurgeryStage | None:
    """The target that the flags give, if any. Raises CaffeError for an invalid one."""
    flags = {
        "sparsity": sparsity or None,
        "compression": compression,
        "macs": macs,
        "latency": latency,
    }
    given = [f"--target-{name}" for name, value in flags.items() if value is not None]
    if len(given) > 1:
        raise CaffeError(f"give {given[0]} or {given[1]}, not both")
    if latency is not None:
        if pattern not in ("", "filter"):
            raise CaffeError("--target-latency is for whole filters: --pattern filter")
        pattern = "filter"
    return parse_target(sparsity, compression, macs, pattern) if given or pattern else None


def add_target(param: SolverParameter, stage: SurgeryStage, *, surgery: bool) -> None:
    """Make the run a single stage with this target and an explicit schedule."""
    if not surgery:
        raise CaffeError("a target for surgery and --no-surgery exclude each other")
    if param.surgery_stage:
        raise CaffeError(
            "a target for surgery was given, but the solver definition has surgery_stage; "
            "change it there, or take it out"
        )
    stage.iterations = param.max_iter
    stage.start_iter, stage.end_iter = 0, param.max_iter // 2
    stage.steepness, stage.interval = stage.steepness, stage.interval  # the defaults
    param.surgery_stage.append(stage)


def write_definition(trainer: Solver, kind: str, without: str) -> None:
    """Write the solver definition that trains the same without the flags in `without`."""
    if not keeps_files(trainer.param):
        return
    definition = SolverParameter()
    definition.CopyFrom(trainer.param)
    definition.random_seed = trainer.seed
    if list(definition.train_state.stage) == [""]:
        definition.ClearField("train_state")  # as an empty -stage leaves it
    name = f"{definition.snapshot_prefix}_{kind}_solver.prototxt"
    command = command_line("train", "--solver", name)
    text = f"# The same run, with its schedule of surgery: {command}\n"
    write_atomically(name, (text + to_text(definition)).encode())
    log.info(f"Wrote {name}, which trains like this without {without}")
