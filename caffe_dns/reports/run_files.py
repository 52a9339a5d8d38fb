"""Which files belong to a run: a log, a solver, snapshots with its prefix.

Any of them leads to the others: a log contains its definitions, and these the prefix.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.text import to_text
from caffe_dns.proto.upgrade import read_solver
from caffe_dns.reports.curves import Run, read_lines, run_names, run_of_lines
from caffe_dns.reports.run_log import RunLog, read_run_log
from caffe_dns.solver.snapshot_files import Snapshot, find_snapshots

_MODELS = (".caffemodel", ".caffemodel.h5", ".dnsz")
_STATES = (".solverstate", ".solverstate.h5")


@dataclass
class RunFiles:
    """What was found of a run. `weights` and `state` are empty where there are none."""

    log: RunLog
    weights: str = ""
    state: str = ""
    #: Whether the user named the weights: what is wrong with them is an error then.
    weights_given: bool = False

    @property
    def name(self) -> str:
        return self.log.run.name


def run_titles(arguments: Sequence[str]) -> list[str]:
    """Short names for runs, by the first file of each."""
    return run_names([str(Path(argument.split(",")[0]).absolute()) for argument in arguments])


def find_run(argument: str, name: str) -> RunFiles:
    """The files of a run, by any of them, several with commas, or by their folder.

    Raises CaffeError when a file cannot be read, or is of no kind that a run has.
    """
    paths = [on_disk(path) for path in argument.split(",") if path]
    if not paths:
        raise CaffeError(f"'{argument}' names no file of a run")
    if len(paths) == 1 and os.path.isdir(paths[0]):
        paths = _in_folder(paths[0])
    found = RunFiles(RunLog(Run(name)))
    for path in paths:
        _take(path, found)
    if not found.weights and found.log.solver is not None:
        _find_weights(found, found.log.solver)
    return found


def _take(path: str, found: RunFiles) -> None:
    """Add what one file says. The kind is seen by the ending; a log may have any."""
    snapshot = _of_prefix(path)
    if path.endswith(_MODELS):
        _check(path)
        found.weights, found.weights_given = path, True
    elif path.endswith(_STATES) or snapshot is not None:
        snapshot = snapshot or Snapshot(0, Path(path))
        found.state, found.weights, found.weights_given = (
            str(snapshot.state),
            str(snapshot.model),
            True,
        )
        _check(found.state)
        _check(found.weights)
    elif path.endswith(".prototxt"):
        solver = read_solver(path).message
        found.log.solver = solver
        found.log.solver_text = to_text(solver)
    else:
        solver_given, text = found.log.solver, found.log.solver_text
        found.log = read_run_log(path, found.name)
        if solver_given is not None:
            found.log.solver, found.log.solver_text = solver_given, text


def _in_folder(folder: str) -> list[str]:
    """The newest training log in a folder, or else its solver, or else its newest snapshot."""
    entries = [entry for entry in Path(folder).iterdir() if entry.is_file()]
    for entry in _newest(entry for entry in entries if ".log" in entry.suffixes):
        if not run_of_lines(read_lines(str(entry)), "").is_empty():
            return [str(entry)]
    solvers = [str(entry) for entry in entries if entry.name.endswith("solver.prototxt")]
    states = _newest(entry for entry in entries if entry.name.endswith(_STATES))
    if len(solvers) == 1:
        return solvers
    if states:
        return [str(states[0])]
    raise CaffeError(
        "has no training log (*.log), no snapshot, and not one solver (*solver.prototxt)",
        file=folder,
    )


def _newest(entries: Iterable[Path]) -> list[Path]:
    return sorted(entries, key=lambda entry: entry.stat().st_mtime, reverse=True)


def _of_prefix(path: str) -> Snapshot | None:
    """The newest snapshot, if `path` is the prefix of any and no file itself."""
    return None if os.path.exists(path) else next(iter(_with_model(find_snapshots(path))), None)


def _find_weights(found: RunFiles, solver: SolverParameter) -> None:
    """The newest snapshot of the solver's prefix that is not of a longer run than the log's."""
    folder = found.log.folder if os.path.isdir(found.log.folder) else ""
    prefix = os.path.join(folder, on_disk(solver.snapshot_prefix))
    last = max((i for series in found.log.run.losses.values() for i in series), default=None)
    with suppress(CaffeError):  # a log may come from where others have no access
        for snapshot in _with_model(find_snapshots(prefix)):
            if last is None or snapshot.iteration <= last:
                found.state, found.weights = str(snapshot.state), str(snapshot.model)
                return


def _with_model(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    return [snapshot for snapshot in snapshots if snapshot.model.exists()]


def _check(path: str) -> None:
    if not os.path.isfile(path):
        raise CaffeError("cannot be read: there is no such file", file=path)
