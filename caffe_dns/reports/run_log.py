"""What a training log says of its run beside the curves: settings, versions, seed, time.

The definitions stand in it as the solver and the net took them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TypeVar

from google.protobuf.message import Message

from caffe_dns import log
from caffe_dns.encoding import in_message
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Shape
from caffe_dns.proto.caffe_pb2 import NetParameter, SolverParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.reports.curves import Run, read_lines, run_of_lines

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
_TOP = re.compile(r"Top shape: ((?:\d+ )*)\(\d+\)")
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
    lines = read_lines(path)
    run = run_of_lines(lines, name)
    if run.is_empty():
        raise CaffeError("is not a training log: it has no losses, scores or sparsities", file=path)
    found = RunLog(run, _facts(lines))
    found.solver_text = _definition(lines, _SOLVER)
    found.solver = _parse(found.solver_text, SolverParameter)
    found.net = _parse(_definition(lines, _NET), NetParameter)
    found.shapes = _shapes(lines)
    return found


def _facts(lines: Sequence[str]) -> dict[str, str]:
    facts: dict[str, str] = {}
    times: list[datetime] = []
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        month, day, hour, minute, second = map(int, match.groups()[:5])
        try:
            times.append(datetime(2000, month, day, hour, minute, second))  # a leap year
        except ValueError:
            continue
        for title, beginning in _HEAD.items():
            if match[6].startswith(beginning):
                facts[title] = match[6].removeprefix(beginning).rstrip(".\n")
    if times:
        facts["began"] = times[0].strftime("%d %B, %H:%M:%S")
        facts["took"] = str(_passed(times))
    return facts


def _passed(times: Sequence[datetime]) -> timedelta:
    """From the first line to the last, across any new years."""
    passed = times[-1] - times[0]
    years = sum(later.month < earlier.month for earlier, later in pairwise(times))
    return passed + years * timedelta(days=366)


def _definition(lines: Sequence[str], title: str) -> str:
    """The text that stands below the first such line, up to the next line of the log."""
    begin = next((i for i, line in enumerate(lines) if title in line), None)
    if begin is None:
        return ""
    text: list[str] = []
    for line in lines[begin + 1 :]:
        if _LINE.match(line):
            break
        text.append(line)
    return "".join(text)


def _shapes(lines: Sequence[str]) -> dict[str, list[Shape]]:
    """What the log says of the first net: `Setting up conv1`, `Top shape: 64 20 24 24 (737280)`."""
    shapes: dict[str, list[Shape]] = {}
    layer = ""
    for line in lines:
        match = _LINE.match(line)
        text = match[6].rstrip("\n") if match else ""
        if text.startswith(_SETTING_UP):
            layer = text.removeprefix(_SETTING_UP)
            if layer in shapes:  # another net begins
                break
            shapes[layer] = []
        elif layer and (shape := _TOP.fullmatch(text)):
            shapes[layer].append(tuple(map(int, shape[1].split())))
    return shapes


def _parse(text: str, kind: type[M]) -> M | None:
    if not text:
        return None
    was_quiet = log.set_quiet(True)
    try:
        return parse_text(in_message(text), kind).message
    except CaffeError:
        return None
    finally:
        log.set_quiet(was_quiet)
