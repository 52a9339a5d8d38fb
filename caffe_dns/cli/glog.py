"""glog's flags, which every tool of Caffe takes: how much is logged, and where to.

Each flag is also read from the environment, as `GLOG_minloglevel` and the like. As in Caffe's
tools, the log goes to stderr unless a flag says otherwise; log files are written only if a folder
is given.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO

from caffe_dns import log
from caffe_dns.encoding import encode
from caffe_dns.errors import CaffeError

#: gflags' spellings of booleans, in any case.
_TRUE = {"1", "t", "true", "y", "yes"}
_FALSE = {"0", "f", "false", "n", "no"}
#: The flags with the defaults of Caffe's tools.
DEFAULTS: dict[str, bool | int | str] = {
    "logtostderr": False,
    "alsologtostderr": True,
    "minloglevel": 0,
    "stderrthreshold": 2,
    "log_dir": "",
}
#: Caffe's tools that do not set alsologtostderr, and so show only errors.
_ONLY_ERRORS = {"extract_features", "convert_mnist_siamese_data"}
_SEVERITY = re.compile(r"\d{1,9}")
_NAMES = {"I": "INFO", "W": "WARNING", "E": "ERROR", "F": "FATAL"}


def is_true(flag: str, text: str) -> bool:
    """The value of a boolean flag. Raises CaffeError for spellings that gflags refuses."""
    if text.lower() not in _TRUE | _FALSE:
        raise CaffeError(f"{flag}: '{text}' is neither true nor false")
    return text.lower() in _TRUE


def take(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without glog's flags, and the values of these by name.

    Raises CaffeError for a flag without a value that needs one.
    """
    others: list[str] = []
    taken: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        affirmed = name.removeprefix("no")
        is_switch = isinstance(DEFAULTS.get(affirmed), bool)
        if not word.startswith("--") or not (is_switch or name in DEFAULTS):
            others.append(word)
        elif is_switch:
            taken[affirmed] = "false" if name != affirmed else value if equals else "true"
        else:
            given = value if equals else next(words, None)
            if given is None:
                raise CaffeError(f"--{name} needs a value")
            taken[name] = given
    return others, taken


@contextmanager
def heeded(
    taken: dict[str, str], environment: Mapping[str, str], action: str = ""
) -> Iterator[None]:
    """A context in which an action logs to where these flags or the environment say.

    Raises CaffeError for an invalid value, or a folder that does not exist.
    """
    given = {name: environment.get(f"GLOG_{name}", "") for name in DEFAULTS} | taken
    defaults = DEFAULTS | {"alsologtostderr": action not in _ONLY_ERRORS}
    values = {name: _value(name, text, defaults[name]) for name, text in given.items()}
    to_stderr = values["logtostderr"] or values["alsologtostderr"]
    least = int(values["minloglevel"])
    folder = str(values["log_dir"])
    before = log.stderr_from
    log.stderr_from = least if to_stderr else max(least, int(values["stderrthreshold"]))
    files = None if values["logtostderr"] or not folder else _Files(folder, least)
    if files is not None:
        log.listeners.append(files.write)
    try:
        yield
    finally:
        log.stderr_from = before
        if files is not None:
            log.listeners.remove(files.write)
            files.close()


def _value(name: str, text: str, default: bool | int | str) -> bool | int | str:
    if not text:
        return default
    if isinstance(default, bool):
        return is_true(f"--{name}", text)
    if isinstance(default, int):
        if not _SEVERITY.fullmatch(text):
            raise CaffeError(f"--{name}: '{text}' is no severity: 0 INFO, 1 WARNING, 2 ERROR")
        return int(text)
    return text


class _Files:
    """A file per severity, with the lines of at least that severity; created by the first line."""

    def __init__(self, folder: str, least: int) -> None:
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
            raise CaffeError("--log_dir: there is no such folder to write to", file=folder)
        self._folder = folder
        self._least = least
        self._open: dict[str, BinaryIO] = {}

    def write(self, line: str) -> None:
        severity = log.SEVERITIES.index(line[0])
        data = encode(f"{line}\n")
        try:
            for letter in log.SEVERITIES[self._least : severity + 1]:
                if letter not in self._open:
                    self._open[letter] = self._make(_NAMES[letter])
                self._open[letter].write(data)
        except OSError:
            log.lost_lines += 1

    def _make(self, severity: str) -> BinaryIO:
        """Create an unbuffered file and, if possible, a link to it as the newest one."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        user = os.environ.get("USER") or os.getuid()
        name = f"dns.{os.uname().nodename}.{user}.log.{severity}.{stamp}.{os.getpid()}"
        file = open(os.path.join(self._folder, name), "wb", buffering=0)  # noqa: SIM115
        link = os.path.join(self._folder, f"dns.{severity}")
        with suppress(OSError):
            if os.path.lexists(link):
                os.unlink(link)
            os.symlink(name, link)
        return file

    def close(self) -> None:
        for file in self._open.values():
            file.close()
