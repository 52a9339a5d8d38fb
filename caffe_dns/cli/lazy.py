"""Imports what a command needs when it runs, not when its flags are declared."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import Any

from caffe_dns import interrupt
from caffe_dns.cli import threads


def runs(action: str) -> Callable[[Callable[[], None]], Callable[..., Any]]:
    """Let a command's flags go to the function `run` of `caffe_dns.cli.actions.ACTION`.

    What it decorates is the command's help alone. Signals are heeded as soon as flags are known.
    """

    def decorate(help_of: Callable[[], None]) -> Callable[..., Any]:
        @wraps(help_of)
        def command(**flags: Any) -> Any:
            interrupt.settle(flags.get("sigint_effect"), flags.get("sighup_effect"))
            module = import_for_good(f"caffe_dns.cli.actions.{action}")
            if (count := flags.pop("threads", None)) is not None:
                threads.use(count)
            return module.run(**flags)

        return command

    return decorate


def import_for_good(name: str) -> ModuleType:
    """Import a module with all that it needs, and never look for garbage in that.

    PyTorch alone makes 150,000 objects; looking through them costs a short run a quarter of
    its time.
    """
    if name not in sys.modules:
        gc.disable()
        try:
            import_module(name)
            gc.freeze()
        finally:
            gc.enable()
    return sys.modules[name]
