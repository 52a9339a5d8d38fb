"""Log lines in the classic glog format, on stderr.

    I1122 11:24:26.416657 29051 solver.py:45] Initializing solver from parameters:

Tools that read Caffe's logs expect the severity letter, month and day, time in microseconds, thread
id and source position. Only the process of rank 0 writes (Caffe's root solver).
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable

from caffe_dns import interrupt
from caffe_dns.encoding import on_disk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

#: How many lines were not taken: a disk is full, or a terminal or whoever read them has gone.
lost_lines = 0
#: The exit code of a run whose results are whole, but whose log, or a file beside them, is not
#: (EX_IOERR of sysexits.h).
LOST_OUTPUT = 74
#: Seconds between two looks whether the program is to stop, while nobody reads what it says.
_LOOK = 0.5


#: Characters by which a terminal is told what to do: names in files may have them.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}


def visible(text: str) -> str:
    """Text for people, as the system has it, in which control characters are spelled out.

    Tabs and line breaks stay.
    """
    return on_disk(text).translate(_CONTROLS)


def say(text: str) -> None:
    """A line on stderr as it is. What is at work goes on when stderr does not take it."""
    put(text + "\n", sys.stderr)


def put(text: str, stream: TextIO) -> None:
    """Text on stdout or stderr as it is; where it is not taken, it counts as a lost line."""
    global lost_lines
    try:
        if isinstance(stream, io.TextIOWrapper) and stream in (sys.__stdout__, sys.__stderr__):
            stream.flush()
            _write_out(stream.fileno(), text.encode(stream.encoding, stream.errors or "strict"))
        else:  # a program has put its own there
            stream.write(text)
            stream.flush()
    except OSError:
        lost_lines += 1


def _write_out(descriptor: int, data: bytes) -> None:
    """Write to a descriptor, past the buffers of Python's stream, which would keep what failed.

    A pipe that nobody reads is waited for, unless the program is to stop: that raises OSError.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    left = memoryview(data)
    while left:
        while not poll.poll(_LOOK * 1000):
            if interrupt.stopping:
                raise BlockingIOError
        # No more than there is room for in a pipe that takes anything at all.
        left = left[os.write(descriptor, left[: select.PIPE_BUF]) :]


#: Where finished lines go. A progress bar puts its own function here while it is on the screen.
sink: Callable[[str], None] = say

#: Functions that hear every finished line as well, wherever it goes.
listeners: list[Callable[[str], None]] = []

#: The letters that lines begin with, the least severe first.
SEVERITIES = "IWEF"
#: The place in these from which on lines go to `sink`; listeners hear the others, too.
stderr_from = 0

_quiet = False


class _Hushed(threading.local):
    """`with hushed:` leaves out INFO and WARNING lines of this thread."""

    blocks = 0

    def __enter__(self) -> None:
        self.blocks += 1

    def __exit__(self, *error: object) -> None:
        self.blocks -= 1


class _Silenced:
    """`with silenced:` leaves out INFO and WARNING lines of all threads, readers included."""

    def __init__(self) -> None:
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(set_quiet(True))

    def __exit__(self, *error: object) -> None:
        set_quiet(self._before.pop())


hushed, silenced = _Hushed(), _Silenced()
#: What `info_once` has said.
said_once: set[str] = set()


def set_sink(function: Callable[[str], None] | None) -> None:
    """Send finished lines to `function`, or to stderr again when it is None."""
    global sink
    sink = function or say


def set_quiet(quiet: bool) -> bool:
    """Leave out INFO and WARNING lines from now on, or no longer; returns what was so before.

    For processes that are not of rank 0, and for Python users; for a while, see `silenced`.
    """
    global _quiet
    _quiet, before = quiet, _quiet
    return before


def is_quiet() -> bool:
    """Whether INFO and WARNING lines are left out: long ones need not be made then."""
    return _quiet or hushed.blocks > 0


def info(message: str) -> None:
    """A line of severity I."""
    if not is_quiet():
        _write("I", message)


def info_once(message: str) -> None:
    """A line of severity I, the first time that it is said in this process (LOG_FIRST_N)."""
    if not is_quiet() and message not in said_once:
        said_once.add(message)
        _write("I", message)


def warning(message: str) -> None:
    """A line of severity W."""
    if not is_quiet():
        _write("W", message)


def error(message: str) -> None:
    """A line of severity E."""
    _write("E", message)


def fatal(message: str) -> None:
    """A line of severity F. Writes only: ending the program is up to the caller."""
    _write("F", message)


def number(value: float) -> str:
    """A number as C++ streams print it: six significant digits, no trailing zeros."""
    return f"{value:.6g}"


def _write(severity: str, message: str) -> None:
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    frame = sys._getframe(2)
    position = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
    stamp = time.strftime("%m%d %H:%M:%S", time.localtime(seconds))
    micros = nanoseconds // 1000
    message = message.removesuffix("\n")  # as glog, which ends each message with one line break
    head = f"{severity}{stamp}.{micros:06d} {threading.get_native_id():5d} {position}] "
    line = head + visible(message)
    if SEVERITIES.index(severity) >= stderr_from:
        sink(line)
    for listener in listeners:
        listener(line)
