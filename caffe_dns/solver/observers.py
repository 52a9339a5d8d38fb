"""Observers of a training run, and the one that writes the table of surgery.

An observer is told of each display and each test. No observer changes the training, makes the host
wait for the device at any other iteration, or ends the run: see `SideFile`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from caffe_dns import log
from caffe_dns.encoding import encode, on_disk
from caffe_dns.errors import CaffeError, first_line, shortage
from caffe_dns.files import write_atomically
from caffe_dns.files.reading import read_file
from caffe_dns.surgery.masked_layers import Count


@dataclass(frozen=True)
class Display:
    """What the solver shows at a display: the smoothed loss, the rate, outputs and masks."""

    iteration: int
    loss: float
    rate: float
    outputs: Mapping[str, Tensor]
    surgery: Sequence[Count]


class Observer(Protocol):
    """Is told what happens in a training run."""

    def displayed(self, display: Display) -> None:
        """A display was logged."""

    def tested(self, iteration: int, index: int, scores: Mapping[str, Tensor]) -> None:
        """Test net `index` was scored; `scores` are the means of its outputs."""

    def close(self) -> None:
        """Training is over."""


class SideFile:
    """An observer that writes `file` beside the snapshots, and is less important than they are.

    If it cannot be written (the disk is full, its folder is gone, memory runs out), one warning
    says so, and training continues without it.
    """

    def __init__(self, file: str, observer: Observer) -> None:
        self._file = file
        self._observer = observer
        #: Whether the file has been given up.
        self.is_lost = False

    def displayed(self, display: Display) -> None:
        self._tell(lambda observer: observer.displayed(display))

    def tested(self, iteration: int, index: int, scores: Mapping[str, Tensor]) -> None:
        self._tell(lambda observer: observer.tested(iteration, index, scores))

    def close(self) -> None:
        self._tell(lambda observer: observer.close())

    def _tell(self, tell: Callable[[Observer], None]) -> None:
        if self.is_lost:
            return
        try:
            tell(self._observer)
        except (OSError, MemoryError, RuntimeError) as error:
            what = self._explain(error)
            if what is None:
                raise
            self.is_lost = True
            log.warning(f"{what}; nothing more is written there; training continues")

    def _explain(self, error: Exception) -> str | None:
        """What cannot be written, and why; None for a programming error."""
        if isinstance(error, CaffeError):
            return str(error)
        if isinstance(error, OSError):
            return f"{self._file}: cannot be written: {error.strerror or first_line(error)}"
        lacking = shortage(error)
        return None if lacking is None else f"{self._file}: cannot be written: {lacking}"


def log_scores(phase: str, scores: Mapping[str, Tensor], loss_weights: Mapping[str, float]) -> None:
    """One line for each element of each output (`Solver::Step`, `Solver::Test`)."""
    number = 0
    for name, score in scores.items():
        weight = loss_weights.get(name, 0.0)
        for value in score.reshape(-1).tolist():
            text = f"    {phase} net output #{number}: {name} = {log.number(value)}"
            if weight:
                text += f" (* {log.number(weight)} = {log.number(weight * value)} loss)"
            log.info(text)
            number += 1


class SurgeryTable:
    """A CSV file with one row for each masked layer at each display.

    When training resumes from iteration n, rows from n on, which an interrupted run may have left,
    are replaced. `threshold` is in standard deviations; for layers of the official kind
    it is their c_rate. Raises CaffeError or OSError when the file cannot be written, or is
    another kind of file.
    """

    COLUMNS = ("iteration", "layer", "kept", "pruned", "sparsity", "spliced_back", "threshold")

    def __init__(self, path: str | Path) -> None:
        self.path = Path(on_disk(str(path)))
        self._started = False

    def displayed(self, display: Display) -> None:
        rows = [
            (
                display.iteration,
                count.layer,
                count.kept,
                count.pruned,
                log.number(count.sparsity),
                count.spliced_back,
                log.number(count.threshold),
            )
            for count in display.surgery
        ]
        if not rows:
            return
        if self._started:
            with self.path.open("ab") as file:
                file.write(encode(_csv_text(rows)))
        else:
            earlier = self._read_before(display.iteration)
            write_atomically(self.path, encode(_csv_text([self.COLUMNS, *earlier, *rows])))
            self._started = True

    def tested(self, iteration: int, index: int, scores: Mapping[str, Tensor]) -> None:
        """Scores are only logged."""

    def close(self) -> None:
        """The file is complete after each display."""

    def _read_before(self, iteration: int) -> list[list[str]]:
        """The rows of an earlier run before this iteration, without an incomplete last row."""
        if iteration == 0:
            return []
        try:
            text = read_file(self.path).decode(errors="surrogateescape")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CaffeError(f"cannot be read: {error.strerror}", file=str(self.path)) from None
        try:
            rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
            if tuple(rows[0] if rows else ()) != self.COLUMNS:
                raise ValueError
            return [row for row in rows[1:] if row and row[0].isdigit() and int(row[0]) < iteration]
        except (csv.Error, ValueError):
            raise CaffeError(
                "is not a table of surgery; move it elsewhere", file=str(self.path)
            ) from None


def _csv_text(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
