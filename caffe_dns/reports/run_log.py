"""What a training log says about its run besides the curves: settings, versions, seed, time.

It contains the definitions as the solver and the net took them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from google.protobuf.message import Message

from caffe_dns import log
from caffe_dns.encoding import in_message
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Shape
from caffe_dns.proto.caffe_pb2 import NetParameter, SolverParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.reports.curves import COUNT, CurveReader, Run, read_lines

_LINE = re.compile(r"[IWEF](\d\d)(\d\d) (\d\d):(\d\d):(\d\d)\.\d+ +\d+ [^\]]*\] ?(.*)", re.DOTALL)
#: Lines of the head, by what they are called here.
_HEAD = {
    "versions": "Versions: ",
    "host": "Host: ",
    "command line": "Command line: ",
    "folder": "Folder: ",
    "random seed": "Random seed: ",
    "device": "Use ",
}
M = TypeVar("M", bound=Message)

_SETTING_UP = "Setting up "
#: Of a top; a blob has 32 axes at most.
_TOP = re.compile(rf"Top shape: ((?:{COUNT} ){{0,32}})\(\d+\)")
_SOLVER = "Initializing solver from parameters:"
_NET = "Initializing net from parameters:"


@dataclass
class RunLog:
    """One log. Definitions are None where the log has none that can be read."""

    run: Run
    #: Lines of its head, and when it began and for how long it went on.
    facts: dict[str, str] = field(default_factory=dict)
    solver: SolverParameter | None = None
    #: The first net in the log: that of training.
    net: NetParameter | None = None
    solver_text: str = ""
    #: The shapes of each layer's tops in that net, with the batch.
    shapes: dict[str, list[Shape]] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Where the run was started, as far as the log says so."""
        return re.sub(r" \(git [^)]*\)$", "", self.facts.get("folder", ""))


def read_run_log(path: str, name: str) -> RunLog:
    """Read a log. Raises CaffeError when it cannot be read, or is no training log."""
    reader = LogReader()
    for line in read_lines(path):
        reader.read(line)
    found = reader.result(name)
    found.run.check(path)
    return found


class LogReader:
    """Collects what a log says, line by line."""

    def __init__(self) -> None:
        self._curves = CurveReader()
        self._facts: dict[str, str] = {}
        #: The times of the first line and of the last, in a leap year, and the new years between.
        self._first: datetime | None = None
        self._last = datetime.min
        self._years = 0
        #: The text below the first line of each kind, and the one that goes on.
        self._definitions: dict[str, list[str]] = {}
        self._open: list[str] | None = None
        self._shapes: dict[str, list[Shape]] = {}
        #: The layer that is being set up; None when the first net is complete.
        self._layer: str | None = ""

    def read(self, line: str) -> None:
        """Take what a line says, which ends with a line break."""
        self._curves.read(line)
        match = _LINE.match(line)
        if match is None:
            if self._open is not None:
                self._open.append(line)
            return
        self._open = None
        self._read_time(*map(int, match.groups()[:5]))
        self._read_message(match[6].rstrip("\n"))

    def result(self, name: str) -> RunLog:
        """What was said so far."""
        facts = dict(self._facts)
        if self._first is not None:
            facts["began"] = self._first.strftime("%d %B, %H:%M:%S")
            facts["took"] = str(self._last - self._first + self._years * timedelta(days=366))
        solver, net = ("".join(self._definitions.get(title, ())) for title in (_SOLVER, _NET))
        return RunLog(
            self._curves.run(name),
            facts,
            _parse(solver, SolverParameter),
            _parse(net, NetParameter),
            solver,
            self._shapes,
        )

    def _read_time(self, month: int, day: int, hour: int, minute: int, second: int) -> None:
        try:
            time = datetime(2000, month, day, hour, minute, second)
        except ValueError:
            return
        self._first = self._first or time
        self._years += time.month < self._last.month
        self._last = time

    def _read_message(self, text: str) -> None:
        for title, beginning in _HEAD.items():
            if text.startswith(beginning):
                self._facts[title] = text.removeprefix(beginning).rstrip(".")
        for title in (_SOLVER, _NET):
            if text.startswith(title) and title not in self._definitions:
                self._open = self._definitions[title] = []
        if self._layer is None:
            return
        if text.startswith(_SETTING_UP):
            layer = text.removeprefix(_SETTING_UP)
            self._layer = None if layer in self._shapes else layer  # another net begins
            self._shapes.setdefault(layer, [])
        elif self._layer and (shape := _TOP.fullmatch(text)):
            self._shapes[self._layer].append(tuple(map(int, shape[1].split())))


def _parse(text: str, kind: type[M]) -> M | None:
    if not text:
        return None
    with log.hushed:
        try:
            return parse_text(in_message(text), kind).message
        except CaffeError:
            return None
