"""`dns train --snapshot`, `--resume` and `--keep`: where to resume, and which snapshots to keep."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from caffe_dns import log
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError
from caffe_dns.files import claimed
from caffe_dns.parallel.ranks import Ranks
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.upgrade import read_solver
from caffe_dns.solver.snapshot_files import Rotation, find_snapshots, newest_whole
from caffe_dns.solver.solver import Solver

#: What --resume means without a file.
NEWEST = "newest"


@dataclass
class Snapshots:
    """The values of the flags. Raises CaffeError if they contradict each other."""

    snapshot: str
    resume: str | None
    keep: int | None

    def __post_init__(self) -> None:
        if self.snapshot and self.resume:
            raise CaffeError("-snapshot and --resume both say where to go on; give one of them")
        if self.resume == "":  # an empty variable in a script; never overwrite snapshots then
            raise CaffeError("--resume is given an empty name; a state, or no name, would be right")
        self._rotation = None if self.keep is None else Rotation(self.keep)

    def find_state(self, solver: str, ranks: Ranks | None) -> str:
        """The solver state to resume from; empty to start from the beginning.

        `solver` is the file of the definition. Raises CaffeError if the named state does not
        exist, if there are snapshots but none is complete, or if ranks see different ones.
        """
        if self.resume != NEWEST:
            state = self.resume or self.snapshot
            if state and not os.path.exists(on_disk(state)):
                raise _missing(state, read_solver(solver).message.snapshot_prefix)
            return state
        try:
            newest = newest_whole(read_solver(solver).message)
        except CaffeError as error:
            raise error.locate(file=solver) from None
        iteration = 0 if newest is None else newest.iteration
        if ranks is not None and ranks.from_root(iteration) != iteration:
            raise CaffeError(
                f"the newest complete snapshot that rank {ranks.rank} sees is of iteration "
                f"{iteration}, rank 0 sees another; all need the same files"
            )
        if newest is None:
            log.info("No snapshot to resume from yet: starting from the beginning")
            return ""
        return str(newest.state)

    def rotate(self, trainer: Solver, *, resumed: bool) -> None:
        """Remove old snapshots while `trainer` runs, if the flags say so."""
        if self._rotation is not None:
            if resumed:
                self._rotation.adopt(trainer.param.snapshot_prefix, trainer.iteration)
            trainer.on_snapshot = self._rotation.add


def _missing(state: str, prefix: str) -> CaffeError:
    """The error that a state does not exist, with a suggestion."""
    there = find_snapshots(prefix)
    right = f"no state begins with '{prefix}_iter_', so there is none to go on from"
    if there:
        right = f"the newest state of this solver is {there[0].state}"
    return CaffeError(f"is not there; {right}", file=state)


def keeps_files(param: SolverParameter) -> bool:
    """Whether the run writes files beside its snapshots."""
    return bool(param.snapshot_prefix) and bool(param.snapshot or param.snapshot_after_train)


@contextmanager
def alone_with_prefix(trainer: Solver) -> Iterator[None]:
    """Warn of other trainings on this machine that write snapshots with the same names."""
    if not (trainer.ranks.is_root and keeps_files(trainer.param)):
        yield
        return
    prefix = trainer.param.snapshot_prefix
    with claimed(Path(on_disk(prefix))) as others:
        for process in others:
            log.warning(
                f"Process {process} seems to train with the snapshot_prefix {prefix}, too: each of "
                "the two would write over what the other has written"
            )
        yield
