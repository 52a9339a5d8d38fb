"""Tables of net outputs from a training log, Caffe's or our own.

Restates Caffe's `tools/extra/parse_log.py`, whose CSV files other tools read, down to what counts
as a row. Lines about surgery are skipped.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from caffe_dns.errors import CaffeError
from caffe_dns.files import write_atomically
from caffe_dns.reports.curves import read_lines

Row = dict[str, float]

_TIME = re.compile(r"\s*[IWEF](\d\d)(\d\d) (\d{1,9}):(\d\d):(\d\d)\.(\d{6})\s")
_ITERATION = re.compile(r"Iteration (\d+)")
_RATE = re.compile(r"lr = ([-+]?[0-9]*\.?[0-9]+(?:[eE]?[-+]?[0-9]+)?)")
_OUTPUT = r"%s net output #\d+: (\S+) = ([.\deE+-]+)"


class Table:
    """The rows for the outputs of one kind of net, "Train" or "Test"."""

    def __init__(self, kind: str) -> None:
        self.rows: list[Row] = []
        self._pattern = re.compile(_OUTPUT % kind)
        self._open: Row | None = None

    def read(self, line: str, iteration: float, seconds: float, rate: float) -> None:
        """Take what the line says of an output.

        A row is full when it has as many columns as the first one, which ends with the next
        iteration that has outputs.
        """
        match = self._pattern.search(line)
        value = None if match is None else _number(match[2])
        if match is not None and value is not None:
            if self._open is None or self._open["NumIters"] != iteration:
                if self._open is not None:
                    self.rows.append(self._open)
                self._open = {"NumIters": iteration, "Seconds": seconds, "LearningRate": rate}
            self._open[match[1]] = value
        if self._open is not None and self.rows and len(self._open) == len(self.rows[0]):
            self.rows.append(self._open)
            self._open = None

    def finish(self) -> None:
        """Give the first row, which stands before any rate in the log, the rate of the second."""
        if len(self.rows) > 1:
            self.rows[0]["LearningRate"] = self.rows[1]["LearningRate"]

    def to_csv(self, delimiter: str) -> bytes:
        """The table in the CSV form of spreadsheets, with a line of column names."""
        text = io.StringIO(newline="")
        columns = dict.fromkeys(name for row in self.rows for name in row)
        writer = csv.DictWriter(text, columns, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue().encode()


def parse_log(path: str) -> tuple[Table, Table]:
    """The tables of the train and the test net's outputs.

    Seconds count from the line that says `Solving`. Raises CaffeError when the file cannot be read
    or has no such line.
    """
    lines = iter(read_lines(path))
    # The year matters in leap years only, so that of the file will do.
    clock = _Clock(datetime.fromtimestamp(os.stat(path).st_ctime).year)
    if not any(clock.start(line) for line in lines if "Solving" in line):
        raise CaffeError("is not a training log: no line says when 'Solving' began", file=path)
    return _read_outputs(lines, clock)


def _read_outputs(lines: Iterable[str], clock: _Clock) -> tuple[Table, Table]:
    train, test = Table("Train"), Table("Test")
    iteration: float | None = None
    rate = math.nan
    for line in lines:
        if match := _ITERATION.search(line):
            iteration = float(match[1])
        seconds = clock.seconds(line)
        if iteration is None or seconds is None:  # nothing yet, or not a line of the log
            continue
        if match := _RATE.search(line):
            found = _number(match[1])
            rate = rate if found is None else found
        train.read(line, iteration, seconds, rate)
        test.read(line, iteration, seconds, rate)
    train.finish()
    test.finish()
    return train, test


def _number(text: str) -> float | None:
    """The number that a pattern of Caffe's script has found; None for what is none all the same."""
    try:
        return float(text)
    except ValueError:
        return None


def save_tables(log: str, folder: str, delimiter: str) -> dict[Path, bool]:
    """Write LOG.train and LOG.test into the folder, unless they would have no rows.

    Returns for each path whether it was written. Raises CaffeError when both have no rows, or a
    file cannot be written.
    """
    train, test = parse_log(log)
    if not train.rows and not test.rows:
        raise CaffeError("holds no outputs of two iterations or more", file=log)
    written = {}
    for table, kind in ((train, "train"), (test, "test")):
        path = Path(folder, f"{Path(log).name}.{kind}")
        if table.rows:
            write_atomically(path, table.to_csv(delimiter))
        written[path] = bool(table.rows)
    return written


class _Clock:
    """Turns the times of log lines, which know no year, into seconds since the start."""

    def __init__(self, year: int) -> None:
        self._year = year
        self._start = self._last = datetime.min

    def start(self, line: str) -> bool:
        """Begin to count at this line; False if it has no time."""
        time = self._time(line)
        self._start = self._last = time or datetime.min
        return time is not None

    def seconds(self, line: str) -> float | None:
        """Seconds since the start, or None for a line without a time."""
        time = self._time(line)
        if time is not None and time.month < self._last.month:
            self._year += 1
            time = self._time(line)
        if time is None:
            return None
        self._last = time
        return (time - self._start).total_seconds()

    def _time(self, line: str) -> datetime | None:
        match = _TIME.match(line)
        if match is None:
            return None
        month, day, hour, minute, second, microsecond = map(int, match.groups())
        try:
            return datetime(self._year, month, day, hour, minute, second, microsecond)
        except ValueError:  # no such day or hour
            return None
