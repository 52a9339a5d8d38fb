"""What SIGINT and SIGHUP ask of a training run (`util/signal_handler.cpp`).

A signal only leaves a note; the solver looks at it once per iteration.
"""

from __future__ import annotations

import signal
from enum import Enum
from types import FrameType, TracebackType
from typing import Any

from caffe_dns.errors import CaffeError


class Action(Enum):
    """What the solver is to do."""

    NONE = "none"
    STOP = "stop"
    SNAPSHOT = "snapshot"


#: The more an action overrides others, the later it stands: ranks agree on the last that one wants.
BY_URGENCY = (Action.NONE, Action.SNAPSHOT, Action.STOP)


def parse_action(text: str, flag: str) -> Action:
    """The action of a command line value; raises CaffeError naming the flag."""
    try:
        return Action(text)
    except ValueError:
        known = ", ".join(action.value for action in Action)
        raise CaffeError(f"-{flag}: unknown effect '{text}'; known: {known}") from None


class SignalHandler:
    """A context in which SIGINT and SIGHUP are turned into actions."""

    def __init__(self, sigint: Action = Action.STOP, sighup: Action = Action.SNAPSHOT) -> None:
        self._effects: dict[signal.Signals, Action] = {}
        if hasattr(signal, "SIGHUP"):
            self._effects[signal.SIGHUP] = sighup
        self._effects[signal.SIGINT] = sigint
        self._received: set[int] = set()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalHandler:
        for number in self._effects:
            self._previous[number] = signal.signal(number, self._note)
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
        self._received.add(number)
