"""Processes of their own for tests that need one, without the seconds that importing PyTorch takes.

They are forked from a process that has imported the package and done nothing else. What is tested
about the start of a process itself needs a new one.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

CONTEXT = multiprocessing.get_context("forkserver")
#: How long to wait for what has to happen, in seconds: the machine may be busy.
PATIENCE = 240
CONTEXT.set_forkserver_preload(["caffe_dns.cli.main", "caffe_dns.cli.actions.train"])


class Forked:
    """A function of a module, called with words, in a process of its own.

    Of `subprocess.Popen` it has what tests ask of it. `stderr` and `stdout` are files.
    """

    def __init__(
        self,
        function: str,
        words: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        stderr: Path,
        stdout: Path = Path(os.devnull),
    ) -> None:
        self.args = [function, *words]
        streams = [str(path.absolute()) for path in (stdout, stderr)]
        stderr.write_text("")  # it is there as soon as somebody may look
        whole = {**os.environ, **environment}
        arguments = (function, list(words), str(folder.absolute()), whole, streams)
        self._process = CONTEXT.Process(target=_call, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, or minus the signal, if it has ended."""
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        """The same."""
        return self.poll()

    def wait(self, timeout: float | None = None) -> int:
        """The same, once it has ended. Raises TimeoutExpired."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _call(
    function: str, words: list[str], folder: str, environment: dict[str, str], streams: list[str]
) -> None:
    # As `dns` does at its start: signals may be blocked where the first such process is asked for.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[1:] = words
    sys.path.insert(0, folder)  # as `python -m` has it
    for number, name in enumerate(streams, start=1):
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, number)
        os.close(target)
    module, _, name = function.partition(":")
    try:
        getattr(import_module(module), name)(words)
    finally:
        atexit._run_exitfuncs()  # which a forked process leaves out


def run_dns(words: Sequence[str], folder: Path = Path()) -> subprocess.CompletedProcess[str]:
    """`dns` with these arguments, in that folder, to its end."""
    return _run("caffe_dns.cli.main:main", words, folder, {})


def run_python(
    *words: str, folder: Path = Path(), **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -W error` with these words: `-c` and a program, `-m` and a module, or a file."""
    return _run(f"{__name__}:_python", words, folder, environment)


def _run(
    function: str, words: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    with TemporaryDirectory() as scratch:
        streams = Path(scratch, "stderr"), Path(scratch, "stdout")
        code = Forked(function, words, folder, environment, *streams).wait()
        stderr, stdout = (path.read_text() for path in streams)
    return subprocess.CompletedProcess([function, *words], code, stdout, stderr)


def _python(words: list[str]) -> None:
    warnings.simplefilter("error")
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def run_forked(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
    """Stands in for `subprocess.run` where a program starts `dns`."""
    assert list(command[:3]) == [sys.executable, "-m", "caffe_dns"]
    return run_dns(command[3:])
