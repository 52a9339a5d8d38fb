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

#: How many lines were lost, because a disk is full or the terminal or reader is gone.
lost_lines = 0
#: The exit code of a run with complete results but an incomplete log or side file (EX_IOERR of
#: sysexits.h).
LOST_OUTPUT = 74
#: Seconds between checks for a request to stop, while nobody reads the output.
_LOOK = 0.5


#: Control characters for terminals, which names in files may contain.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}


def visible(text: str) -> str:
    """Text with control characters spelled out, except tabs and line breaks."""
    return on_disk(text).translate(_CONTROLS)


def say(text: str) -> None:
    """Write a line to stderr as it is. The program continues if stderr does not accept it."""
    put(text + "\n", sys.stderr)


def put(text: str, stream: TextIO) -> None:
    """Write text to stdout or stderr as it is; if that fails, it counts as a lost line."""
    global lost_lines
    try:
        if isinstance(stream, io.TextIOWrapper) and stream in (sys.__stdout__, sys.__stderr__):
            stream.flush()
            _write_out(stream.fileno(), text.encode(stream.encoding, stream.errors or "strict"))
        else:  # a program has replaced it
            stream.write(text)
            stream.flush()
    except OSError:
        lost_lines += 1


def _write_out(descriptor: int, data: bytes) -> None:
    """Write to a descriptor, bypassing the buffer of Python's stream, which would keep failed text.

    Waits for a pipe that nobody reads; raises OSError if the program has to stop meanwhile.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    left = memoryview(data)
    while left:
        while not poll.poll(_LOOK * 1000):
            if interrupt.stopping:
                raise BlockingIOError
        # No more than fits into a pipe that accepts anything at all.
        left = left[os.write(descriptor, left[: select.PIPE_BUF]) :]


#: Where finished lines go. A progress bar replaces this function while it is on the screen.
sink: Callable[[str], None] = say

#: Functions that also get every finished line.
listeners: list[Callable[[str], None]] = []

#: The letters that lines start with, in ascending order of severity.
SEVERITIES = "IWEF"
#: The index in these from which on lines go to `sink`; listeners get the others, too.
stderr_from = 0

_quiet = False


class _Hushed(threading.local):
    """`with hushed:` suppresses INFO and WARNING lines of this thread."""

    blocks = 0

    def __enter__(self) -> None:
        self.blocks += 1

    def __exit__(self, *error: object) -> None:
        self.blocks -= 1


class _Silenced:
    """`with silenced:` suppresses INFO and WARNING lines of all threads."""

    def __init__(self) -> None:
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(set_quiet(True))

    def __exit__(self, *error: object) -> None:
        set_quiet(self._before.pop())


hushed, silenced = _Hushed(), _Silenced()
#: What `info_once` has logged.
said_once: set[str] = set()


def set_sink(function: Callable[[str], None] | None) -> None:
    """Send finished lines to `function`, or to stderr again when it is None."""
    global sink
    sink = function or say


def set_quiet(quiet: bool) -> bool:
    """Suppress INFO and WARNING lines from now on, or no longer; returns the previous setting.

    For processes other than rank 0, and for Python users; temporarily, use `silenced`.
    """
    global _quiet
    _quiet, before = quiet, _quiet
    return before


def is_quiet() -> bool:
    """Whether INFO and WARNING lines are suppressed, so that long ones need not be formatted."""
    return _quiet or hushed.blocks > 0


def info(message: str) -> None:
    """A line of severity I."""
    if not is_quiet():
        _write("I", message)


def info_once(message: str) -> None:
    """A line of severity I, only once in this process (LOG_FIRST_N)."""
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
    message = message.removesuffix("\n")  # like glog, which ends each message with one line break
    head = f"{severity}{stamp}.{micros:06d} {threading.get_native_id():5d} {position}] "
    line = head + visible(message)
    if SEVERITIES.index(severity) >= stderr_from:
        sink(line)
    for listener in listeners:
        listener(line)
