"""What SIGINT, SIGHUP and SIGTERM ask of a training run (`util/signal_handler.cpp`).

A signal is only noted; the solver checks for it once per iteration. SIGTERM, which kills Caffe,
asks to stop; a SIGINT after a signal to stop ends the program at once.
"""

from __future__ import annotations

import signal
from enum import Enum
from types import FrameType, TracebackType
from typing import Any

from caffe_dns import interrupt
from caffe_dns.errors import CaffeError


class Action(Enum):
    """What the solver is to do."""

    NONE = "none"
    STOP = "stop"
    SNAPSHOT = "snapshot"


#: Each action overrides those before it: ranks agree on the last one that any of them wants.
BY_URGENCY = (Action.NONE, Action.SNAPSHOT, Action.STOP)


def parse_action(text: str, flag: str) -> Action:
    """The action of a command line value; raises CaffeError naming the flag."""
    try:
        return Action(text)
    except ValueError:
        known = ", ".join(action.value for action in Action)
        raise CaffeError(f"-{flag}: unknown effect '{text}'; known: {known}") from None


class SignalHandler:
    """A context in which signals become actions, including those noted before."""

    def __init__(self, sigint: Action = Action.STOP, sighup: Action = Action.SNAPSHOT) -> None:
        self._effects: dict[signal.Signals, Action] = {}
        if hasattr(signal, "SIGHUP"):
            self._effects[signal.SIGHUP] = sighup
        self._effects[signal.SIGINT] = sigint
        self._effects[signal.SIGTERM] = Action.STOP
        self._received: set[int] = set()
        self._previous: dict[signal.Signals, Any] = {}
        #: The signals that have asked to stop.
        self._stops: set[int] = set()

    @property
    def exit_code(self) -> int:
        """The exit code of a stopped run: 0 as in Caffe, or the one for SIGTERM."""
        return 128 + signal.SIGTERM if signal.SIGTERM in self._stops else 0

    def __enter__(self) -> SignalHandler:
        interrupt.stopping = False
        for number in self._effects:
            if number != signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        self._received.update(interrupt.noted)
        interrupt.noted.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def poll(self) -> Action:
        """The action of one signal received since the last call, SIGHUP first."""
        for number, action in self._effects.items():
            if number in self._received:
                self._received.discard(number)
                return action
        return Action.NONE

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._effects[signal.Signals(number)] is Action.STOP:
            if number == signal.SIGINT and self._stops:
                interrupt.end(number)
            self._stops.add(number)
            interrupt.stopping = True
        self._received.add(number)
