"""The result of a command, for people or for programs: `--quiet` and `--json`.

Without either flag, results stand where they always do, in the log or on stdout. `--quiet` prints
only the results, on stdout; `--json` prints one JSON object there instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, is_dataclass
from functools import wraps
from typing import Any

import click

from caffe_dns import log


class Output:
    """The destination of a command's lines and results."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.as_json = as_json
        #: Whether there is no log, and no progress bar.
        self.silent = quiet or as_json

    def log(self, line: str) -> None:
        """Print a line of the result, to the log if there is one."""
        if self.silent:
            self.line(line)
        else:
            log.info(line)

    def line(self, line: str = "") -> None:
        """Print a line of the result to stdout."""
        if not self.as_json:
            click.echo(log.visible(line))

    def result(self, result: object) -> None:
        """Print the whole result with `--json`. Numbers that are not finite become null."""
        if self.as_json:
            click.echo(json.dumps(_plain(result), indent=2, allow_nan=False))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """A context in which nothing is logged if there is no log."""
        with log.silenced if self.silent else nullcontext():
            yield


def with_output(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: a function of `output` gets the flags `quiet` and `as_json` instead."""

    @wraps(function)
    def run(*, quiet: bool, as_json: bool, **flags: Any) -> Any:
        output = Output(quiet=quiet, as_json=as_json)
        with output.at_work():
            return function(output=output, **flags)

    return run


def _plain(value: object) -> object:
    """The same value in JSON's types."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
