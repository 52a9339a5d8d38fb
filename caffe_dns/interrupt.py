"""What SIGINT, SIGTERM and SIGHUP do, from the program's first moment.

The program begins here, before anything else is imported: a KeyboardInterrupt in the middle of an
import is swallowed or leaves a traceback. `begin` notes signals until the flags of the command say
what to do with them (`settle`); while a net trains, `solver/signals` handles them. None of these
raises anything: a program that has to end does so at once (`end`), and leaves no temporary files.
"""

from __future__ import annotations

# What `signal` is made of. `signal` itself imports enum first, which takes longer than all of this.
import _signal  # type: ignore[import-not-found]
import os
import sys

TYPE_CHECKING = False  # `typing` takes longer still
if TYPE_CHECKING:
    from collections.abc import Callable

#: What a signal can ask for, as the flags spell it.
STOP, SNAPSHOT, NONE = "stop", "snapshot", "none"
#: Signals that nobody has heeded yet, in their order.
noted: list[int] = []
#: Called before the program ends at a signal.
at_end: list[Callable[[], None]] = []
#: Whether the program is about to stop, and must not wait for others to read what it says.
stopping = False

_SIGNALS = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP)
#: The program's own signals that were ignored when it began; None where they are not ours to heed.
_ignored: set[int] | None = None
_effects: dict[int, str] = {}


def begin() -> None:
    """Note all signals from now on. For the program `dns` itself, not for those that import it.

    Whoever starts it with these signals blocked, as bin/dns does, loses none to Python's own start,
    either.
    """
    global _ignored
    _open_standard_descriptors()
    _ignored = {n for n in _SIGNALS if _signal.getsignal(n) == _signal.SIG_IGN}
    for number in _SIGNALS:
        # Training heeds SIGINT and SIGHUP where they were ignored, too, as Caffe does.
        if number != _signal.SIGTERM or number not in _ignored:
            _signal.signal(number, lambda number, frame: noted.append(number))
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _SIGNALS)


def settle(sigint: str | None = None, sighup: str | None = None) -> None:
    """Heed signals, also those noted, as a command does that has nothing to save yet.

    Effects are STOP, which ends the program, SNAPSHOT, which is left for `noted`, and NONE. Without
    one, a signal ends the program unless it was ignored when that began. Does nothing in programs
    that have not called `begin`.
    """
    if _ignored is None:
        return
    given = {_signal.SIGINT: sigint, _signal.SIGHUP: sighup}
    for number in _SIGNALS:
        _effects[number] = given.get(number) or (NONE if number in _ignored else STOP)
        if given.get(number) is None and number in _ignored:
            _signal.signal(number, _signal.SIG_IGN)
        else:
            _signal.signal(number, _heed)
    earlier = noted[:]
    noted.clear()
    for number in earlier:
        _heed(number, None)


def finish() -> None:
    """The command has ended, and Python is left to end: no signal changes the exit code any more.

    But for SIGTERM, which ends whatever may hang.
    """
    if _ignored is not None:
        for number in _SIGNALS:
            handler = _signal.SIG_DFL if number == _signal.SIGTERM else _signal.SIG_IGN
            _signal.signal(number, handler)


def leave(code: int) -> None:
    """End the program with this code, without Python's own end.

    For when threads of PyTorch may still be at work: where a computation has failed on a GPU, that
    end would meet them and abort. Does nothing in programs that have not called `begin`.
    """
    if _ignored is None:
        return
    for clean in at_end:
        clean()
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 (contextlib takes long to load)
            stream.flush()
        except OSError:
            pass  # whoever read it has gone
    os._exit(code)


def end(number: int) -> None:
    """End the program at once, with the exit code that shells give to this signal."""
    for clean in at_end:
        clean()
    if os.isatty(2):
        os.write(2, b"\x1b[?25h\r\n")  # a progress bar hides the cursor
    os._exit(128 + number)


def _heed(number: int, frame: object) -> None:
    effect = _effects[number]
    if effect == SNAPSHOT:
        noted.append(number)
    elif effect != NONE:  # or no effect at all, of which the command will complain
        end(number)


def _open_standard_descriptors() -> None:
    """Let what nobody has opened lead nowhere: else the next file would get its number.

    Libraries write their warnings to descriptor 2, whatever that is.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for as long as we run)
