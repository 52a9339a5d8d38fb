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
    """Pass a command's flags to the function `run` of `caffe_dns.cli.actions.ACTION`.

    The decorated function only provides the help. Signals are handled once flags are known.
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
    """Import a module, and exclude all that it creates from garbage collection.

    PyTorch alone creates 150,000 objects; traversing them costs a short run a quarter of its time.
    """
    if name not in sys.modules:
        gc.disable()
        try:
            import_module(name)
            gc.freeze()
        finally:
            gc.enable()
    return sys.modules[name]
