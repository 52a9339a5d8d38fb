"""Losses, scores, rates and sparsities against iterations, from logs of Caffe, its forks, and ours.

Tables in the form of Caffe's parse_log are in `log_tables`, pictures in `curves_chart`, charts of
pages in `page.curves`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from caffe_dns.errors import CaffeError
from caffe_dns.files.reading import read_file

#: A value for each iteration that has one.
Series = dict[int, float]

_NUMBER = r"[-+]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|nan|inf)"
#: Of more digits Python may refuse to make a number.
COUNT = r"\d{1,18}"
#: What may be anything has an end, and lines have: a search takes the square of what has none.
_LONGEST_LINE, _NAME, _SHORT = 4096, ".{1,1000}", ".{0,100}"
_ITERATION = re.compile(rf"\] Iteration ({COUNT})\b(?:, Testing net \(#({COUNT})\))?")
_LOSS = re.compile(rf"\] Iteration {COUNT}(?: \({_SHORT}\))?, loss = ({_NUMBER})")
_RATE = re.compile(rf"\] Iteration {COUNT}, lr = ({_NUMBER})")
_OUTPUT = re.compile(
    rf"\]\s+(Train|Test) net output #({COUNT}): ({_NAME}?) = ({_NUMBER})"
    rf"( \(\* {_NUMBER} = {_SHORT} loss\))?\s*$"
)
_SURGERY = re.compile(
    rf"\] Surgery ({_NAME}): kept ({COUNT}), pruned ({COUNT}), sparsity ({_NUMBER}), "
    rf"spliced back ({COUNT})\b"
)
#: HolmesShuan's fork tells convolutions and inner products apart, but not the layers.
_FORK = re.compile(rf"\] (ConV|IP) Sparsity: ({_NUMBER})")
_FORK_NAMES = {"ConV": "convolutions", "IP": "inner products"}


@dataclass
class Run:
    """The curves of one log, each by the phase and name of its output, or by its layer."""

    name: str
    losses: dict[str, Series] = field(default_factory=dict)
    scores: dict[str, Series] = field(default_factory=dict)
    sparsities: dict[str, Series] = field(default_factory=dict)
    #: The learning rate.
    rates: Series = field(default_factory=dict)
    #: How many parameters each layer keeps, and how many came back since the last display.
    kept: dict[str, Series] = field(default_factory=dict)
    spliced: dict[str, Series] = field(default_factory=dict)
    #: How many parameters of a layer have a mask.
    masked: dict[str, int] = field(default_factory=dict)

    def is_empty(self) -> bool:
        return not (self.losses or self.scores or self.sparsities)

    def check(self, path: str) -> None:
        """Raise CaffeError when the log that was read at `path` has nothing to draw."""
        if self.is_empty():
            raise CaffeError(
                "is not a training log: it has no losses, scores or sparsities", file=path
            )

    def end_of_pruning(self) -> int | None:
        """The first display after which no mask changes any more; None if there is none."""
        iterations = sorted({i for series in self.kept.values() for i in series})
        changes = [
            iteration
            for before, iteration in pairwise(iterations)
            for layer, series in self.kept.items()
            if series.get(before) != series.get(iteration) or self.spliced[layer].get(iteration)
        ]
        last = max(changes, default=None)
        return None if last is None or last == iterations[-1] else last


def read_lines(path: str) -> list[str]:
    """The lines of a log. Raises CaffeError when it cannot be read."""
    try:
        # A log that is emptied while it is written to goes on behind a hole.
        raw = read_file(path).replace(b"\0", b"")
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=path) from None
    return io.TextIOWrapper(io.BytesIO(raw), errors="replace").readlines()


def read_run(path: str, name: str) -> Run:
    """Read a log. Raises CaffeError when it cannot be read, or has nothing to draw."""
    run = run_of_lines(read_lines(path), name)
    run.check(path)
    return run


def run_of_lines(lines: Iterable[str], name: str) -> Run:
    """The curves of a log's lines; empty where these are not of a training log."""
    reader = CurveReader()
    for line in lines:
        reader.read(line)
    return reader.run(name)


def run_names(paths: Sequence[str]) -> list[str]:
    """The names of the files, or the shortest ends of the paths that tell the runs apart."""
    names = [Path(path).name.removesuffix(".log") for path in paths]
    every = [Path(path).parts for path in paths]
    for length in range(2, max(map(len, every)) + 1):
        if len(set(names)) == len(names):
            break
        names = [str(Path(*parts[-length:])) for parts in every]
    return names


class CurveReader:
    """Collects values line by line. When a resumed run repeats an iteration, its values stay."""

    def __init__(self) -> None:
        self._iteration: int | None = None
        self._test_net = 0
        self._smoothed: Series = {}
        self._rates: Series = {}
        self._layers: dict[str, Series] = {}
        self._kept: dict[str, Series] = {}
        self._spliced: dict[str, Series] = {}
        self._masked: dict[str, int] = {}
        self._kinds: dict[str, Series] = {}
        #: By name and iteration: the elements of an output by number.
        self._outputs: dict[str, dict[int, dict[int, float]]] = {}
        self._losses: set[str] = set()

    def read(self, line: str) -> None:
        """Take what a line says; one that is very long says nothing."""
        if len(line) > _LONGEST_LINE:
            return
        if match := _ITERATION.search(line):
            self._iteration = int(match[1])
            self._test_net = int(match[2] or 0)
        if self._iteration is not None:
            self._read_values(line, self._iteration)

    def _read_values(self, line: str, iteration: int) -> None:
        if match := _OUTPUT.search(line):
            name = f"{self._phase(match[1])} {match[3]}"
            values = self._outputs.setdefault(name, {}).setdefault(iteration, {})
            values[int(match[2])] = float(match[4])
            if match[5]:
                self._losses.add(name)
        elif match := _SURGERY.search(line):
            self._kept.setdefault(match[1], {})[iteration] = int(match[2])
            self._masked[match[1]] = int(match[2]) + int(match[3])
            self._layers.setdefault(match[1], {})[iteration] = float(match[4])
            self._spliced.setdefault(match[1], {})[iteration] = int(match[5])
        elif match := _FORK.search(line):
            self._kinds.setdefault(_FORK_NAMES[match[1]], {})[iteration] = float(match[2])
        elif match := _LOSS.search(line):
            self._smoothed[iteration] = float(match[1])
        elif match := _RATE.search(line):
            self._rates[iteration] = float(match[1])

    def _phase(self, word: str) -> str:
        number = f" #{self._test_net}" if word == "Test" and self._test_net else ""
        return word.lower() + number

    def run(self, name: str) -> Run:
        """What was collected. Outputs of several elements are drawn by their mean."""
        run = Run(
            name,
            sparsities=self._layers or self._kinds,
            rates=self._rates,
            kept=self._kept,
            spliced=self._spliced,
            masked=self._masked,
        )
        for output, points in self._outputs.items():
            curves = run.losses if output in self._losses else run.scores
            curves[output] = {
                iteration: sum(values.values()) / len(values)
                for iteration, values in sorted(points.items())
            }
        if self._smoothed and not any(output.startswith("train") for output in run.losses):
            run.losses = {"train loss": self._smoothed, **run.losses}
        return run
