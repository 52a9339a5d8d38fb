"""What `dns train` prints to stdout at its end: the outcome, the files, and what to type next."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from caffe_dns import log
from caffe_dns.cli.provenance import command_line
from caffe_dns.cli.pruned import shrink_command
from caffe_dns.reports.kept import count_kept
from caffe_dns.solver.observers import Display
from caffe_dns.solver.snapshot_files import Snapshot
from caffe_dns.solver.solver import Solver
from caffe_dns.surgery.layer_count import LayerCount
from caffe_dns.surgery.surgeon import Surgeon

_WIDTH = 11

#: What changes where a file is written or replaced, or something new is in a folder.
Stamp = tuple[int, int, int] | None


def stamp(file: str) -> Stamp:
    """The stamp of a file or a folder; None where there is none.

    It is compared with no clock: that of a file server may be another's, and ours may be set.
    """
    try:
        known = os.stat(file)
    except (OSError, ValueError):  # a ValueError for a name with a NUL byte
        return None
    return known.st_ino, known.st_size, known.st_mtime_ns


class Card:
    """Looks on while a run goes from its first test to its last."""

    def __init__(self, trainer: Solver, solver: str, beside: dict[str, Stamp]) -> None:
        """`solver` is the definition's file, `beside` what may be written besides snapshots.

        With the stamp of each before the run.
        """
        self._trainer = trainer
        self.solver = solver
        self._beside = beside
        self._start = trainer.iteration, time.perf_counter()
        #: Those of this run, without what --keep has removed.
        self._snapshots: list[Snapshot] = []
        #: The outputs of the first test net in the first test and in the last: (iteration, means).
        self._tests: list[tuple[int, dict[str, float]]] = []
        before = trainer.on_snapshot

        def noted(iteration: int, state: str) -> None:
            before(iteration, state)
            new = Snapshot(iteration, Path(state))
            self._snapshots = [*(one for one in self._snapshots if one.state.exists()), new]

        trainer.on_snapshot = noted
        trainer.observers.append(self)

    def displayed(self, display: Display) -> None:
        """The log has it."""

    def tested(self, iteration: int, index: int, scores: Mapping[str, Tensor]) -> None:
        if index == 0 and scores:
            means = {name: float(mean) for name, mean in scores.items() if mean.numel() == 1}
            self._tests = [*self._tests[:1], (iteration, means)]

    def close(self) -> None:
        """What is to be said is said by `show`, of runs that have come to an end."""

    def show(self) -> None:
        """Print the card, without which all is done as well."""
        files = [
            str(path)
            for snapshot in self._snapshots
            for path in (snapshot.model, snapshot.state)
            if path.exists()
        ]
        files += [file for file in self._beside if self._is_new(file)]
        # An empty line sets it apart from the log on a terminal; where both go into a file, Caffe's
        # parse_log.py breaks off at one.
        lines = [
            *([""] if sys.stdout.isatty() else []),
            *self._results(),
            *_listed("files", files),
            *_listed("next", self._next(files)),
        ]
        for line in lines:
            log.put(log.visible(line) + "\n", sys.stdout)

    def _is_new(self, file: str) -> bool:
        """Whether a file or a folder is there, and of this run."""
        return stamp(file) not in (None, self._beside[file])

    def _results(self) -> list[str]:
        first, began = self._start
        iterations = self._trainer.iteration - first
        seconds = time.perf_counter() - began
        speed = log.number(iterations / seconds) if seconds else "0"
        what = f"{iterations} iterations in {duration(seconds)}, {speed} a second"
        if self._trainer.stopped_early:
            what += f"; stopped at {self._trainer.iteration} of {self._trainer.param.max_iter}"
        return [
            _row("trained", what),
            *self._scores(),
            *_compression(count_kept(self._trainer.net), self._trainer.surgeon),
        ]

    def _scores(self) -> list[str]:
        if not self._tests:
            return []
        (first, before), (last, after) = self._tests[0], self._tests[-1]
        if len(self._tests) == 1:
            return [
                _row(name, f"{log.number(value)} (iteration {last})")
                for name, value in after.items()
            ]
        return [
            _row(
                name,
                f"{log.number(before[name])} before, {log.number(value)} after "
                f"(iterations {first} and {last})",
            )
            for name, value in after.items()
            if name in before
        ]

    def _next(self, files: list[str]) -> list[str]:
        """The commands that most would type now."""
        last = self._snapshots[-1] if self._snapshots else None
        if last is None:
            return []
        if self._trainer.stopped_early:
            return [command_line("train", "--solver", self.solver, "--snapshot", str(last.state))]
        commands = []
        model = self._trainer.param.net or next(iter(self._trainer.param.test_net), "")
        if model and self._trainer.test_nets:
            commands.append(command_line("test", "--model", model, "--weights", str(last.model)))
        prefix = self._trainer.param.snapshot_prefix
        if f"{prefix}_pruned.caffemodel" in files:
            commands.append(shrink_command(prefix))
        return commands


def _compression(counts: list[LayerCount], surgeon: Surgeon | None) -> list[str]:
    """What is left of the weights and biases, and of the MACs, where anything was pruned."""
    kept, total = sum(count.kept for count in counts), sum(count.total for count in counts)
    # A few are zero by chance, as in `kept_lines`.
    if total - kept <= total / 100 or not kept:
        return []
    rows = [("parameters", kept, total)]
    if surgeon is not None:
        rows.append(("MACs", *surgeon.macs_kept()))
    return [
        _row(what, f"{left:,} of {every:,} are left: {every / left:.1f} times fewer")
        for what, left, every in rows
        if left
    ]


def _listed(title: str, lines: list[str]) -> list[str]:
    return [_row(title if number == 0 else "", line) for number, line in enumerate(lines)]


def _row(title: str, text: str) -> str:
    return f"{title:<{_WIDTH}} {text}"


def duration(seconds: float) -> str:
    """`12.3 s`, `4 min 5 s`, `2 h 3 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
