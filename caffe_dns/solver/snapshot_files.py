"""The snapshots on disk: which one to resume from, and which to remove."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from caffe_dns import log
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.solver.snapshot import checksum, find_model, snapshot_name
from caffe_dns.solver.state_file import read_state
from caffe_dns.weights.transfer import read_layers


@dataclass(frozen=True)
class Snapshot:
    """A state and its model, by their original names."""

    iteration: int
    state: Path

    @property
    def model(self) -> Path:
        """The model beside the state."""
        name = self.state.name.replace(".solverstate", ".caffemodel")
        return self.state.with_name(name)

    def fault(self) -> str | None:
        """What is wrong with the state or its model; None for a complete snapshot."""
        try:
            state, _ = read_state(str(self.state))
            if state.iter != self.iteration:
                return f"is of iteration {state.iter}"
            if not state.HasField("current_step"):
                return "has no current_step, with which each of Caffe's states ends"
            if not state.HasField("learned_net"):
                return "names no model"
            model = find_model(state.learned_net, str(self.state))
            if state.learned_net_sha256:
                if checksum(model) != state.learned_net_sha256:
                    return f"its model {model} is not what it was when the state was written"
            else:  # a state of Caffe's
                for layer in read_layers(model):
                    layer.read()
        except CaffeError as error:
            if error.file == str(self.state):
                error.file = None  # of which this is said
            return first_line(error)
        return None


def find_snapshots(prefix: str) -> list[Snapshot]:
    """All snapshots with this prefix that have a state, the newest first.

    Raises CaffeError if the folder exists but cannot be listed: a run that took it for empty would
    start from the beginning and overwrite what is there.
    """
    prefix = on_disk(prefix)
    pattern = re.compile(re.escape(Path(prefix).name) + r"_iter_(\d+)\.solverstate(\.h5)?")
    folder = Path(prefix).parent
    if prefix.endswith("/"):
        folder, pattern = Path(prefix), re.compile(r"_iter_(\d+)\.solverstate(\.h5)?")
    found = []
    try:
        for path in folder.iterdir():
            if match := pattern.fullmatch(path.name):
                found.append(Snapshot(int(match[1]), path))
    except (FileNotFoundError, NotADirectoryError):
        pass  # there is no folder
    except OSError as error:
        raise CaffeError(f"cannot be listed: {error.strerror}", file=str(folder)) from None
    return sorted(found, key=lambda one: (one.iteration, one.state.name), reverse=True)


def newest_whole(param: SolverParameter) -> Snapshot | None:
    """The newest complete snapshot with the definition's prefix; None if there is no state at all.

    Logs each one that is skipped, and why. Raises CaffeError if there are states but none is
    complete, or if the definition has no prefix.
    """
    if not param.HasField("snapshot_prefix"):
        raise CaffeError(
            "--resume looks for the newest snapshot by snapshot_prefix, which is not given",
            field="snapshot_prefix",
        )
    snapshots = find_snapshots(param.snapshot_prefix)
    faults: list[str] = []
    for snapshot in snapshots:
        fault = snapshot.fault()
        if fault is None:
            return snapshot
        faults.append(f"{snapshot.state}: {fault}")
        log.warning(f"Skipping {faults[-1]}")
    if faults:
        raise CaffeError(
            f"no snapshot {param.snapshot_prefix}_iter_* can be resumed from (the newest, "
            f"{faults[0]}); to start from the beginning, move them elsewhere"
        )
    return None


@dataclass
class Rotation:
    """Keeps the newest `keep` snapshots of a run, and removes older ones.

    Never removes the newest complete one, or files of runs that this run does not continue. Raises
    CaffeError unless `keep` is at least 1.
    """

    keep: int
    written: list[Snapshot] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise CaffeError(f"--keep: at least one snapshot has to stay, not {self.keep}")

    def adopt(self, prefix: str, iteration: int) -> None:
        """Count the snapshots up to where a run resumes as the run's own."""
        older = [one for one in find_snapshots(prefix) if one.iteration <= iteration]
        self.written = list(reversed(older))

    def add(self, iteration: int, state: str) -> None:
        """Note a new snapshot, and remove those that are now too old."""
        new = Snapshot(iteration, Path(state))
        self.written = [one for one in self.written if one.state != new.state] + [new]
        for old in self._too_old():
            self.written.remove(old)
            # The state first: a model without a state is never taken for a snapshot.
            for path in (old.state, old.model):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    log.warning(f"{path} is too old and cannot be removed: {error.strerror}")

    def _too_old(self) -> list[Snapshot]:
        kept, older = self.written[-self.keep :], self.written[: -self.keep]
        if older and not any(_whole(kept)):
            spared = next((one for one in reversed(older) if one.fault() is None), None)
            older = [one for one in older if one is not spared]
        return older


def _whole(snapshots: list[Snapshot]) -> Iterator[bool]:
    return (one.fault() is None for one in reversed(snapshots))


def warn_of_overwriting(param: SolverParameter, files: Iterable[str], start: int) -> None:
    """Log a warning for each of `files` that a snapshot after iteration `start` will replace."""
    hdf5 = param.snapshot_format == SolverParameter.HDF5
    for file in files:
        match = re.search(r"_iter_(\d+)\.caffemodel(\.h5)?$", file)
        iteration = int(match[1]) if match else -1
        in_between = param.snapshot and iteration % param.snapshot == 0
        at_the_end = param.snapshot_after_train and iteration == param.max_iter
        if not start < iteration <= param.max_iter or not (in_between or at_the_end):
            continue
        name = snapshot_name(param, iteration, ".caffemodel.h5" if hdf5 else ".caffemodel")
        if Path(file).resolve() == Path(name).resolve():
            log.warning(
                f"{file} will be replaced by the snapshot of iteration {iteration}; copy it, or "
                "give the solver another snapshot_prefix"
            )
