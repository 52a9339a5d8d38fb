"""What becomes of the log when stderr takes no more: the work goes on."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest

from caffe_dns import interrupt, log
from caffe_dns.cli.actions import parse_log
from caffe_dns.cli.main import main
from caffe_dns.cli.progress import Progress


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "lost_lines", 0)
    monkeypatch.setattr(interrupt, "stopping", False)


Patch = pytest.MonkeyPatch


@contextmanager
def stderr(descriptor: int) -> Iterator[None]:
    """Within it, this is the stderr that Python began with. It keeps nothing when it is closed."""
    with (
        io.TextIOWrapper(os.fdopen(descriptor, "wb"), "utf-8", line_buffering=True) as stream,
        patch.object(sys, "stderr", stream),
        patch.object(sys, "__stderr__", stream),
    ):
        yield


def read(descriptor: int) -> bytes:
    """What there is to read now."""
    os.set_blocking(descriptor, False)
    return os.read(descriptor, 1 << 20)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Where to read and where to write."""
    source, sink = os.pipe()
    yield source, sink
    os.close(source)


def fill(descriptor: int) -> int:
    """Write into a pipe until it takes no more; returns how much that was."""
    os.set_blocking(descriptor, False)
    written = 0
    try:
        while True:
            written += os.write(descriptor, b" " * 4096)
    except BlockingIOError:
        os.set_blocking(descriptor, True)
        return written


def test_lines_arrive_whole(pipe: tuple[int, int]) -> None:
    text = "x" * 20000
    with stderr(pipe[1]):
        log.say("first")
        log.say(text)
    assert read(pipe[0]).decode() == f"first\n{text}\n"
    assert log.lost_lines == 0


def test_a_full_disk_loses_lines() -> None:
    with stderr(os.open("/dev/full", os.O_WRONLY)):
        log.info("a")
        log.info("b")
    assert log.lost_lines == 2


def test_a_reader_that_has_gone_loses_lines() -> None:
    source, sink = os.pipe()
    os.close(source)
    with stderr(sink):
        log.info("a")
    assert log.lost_lines == 1


def test_a_terminal_that_has_gone_loses_lines_and_ends_no_run() -> None:
    """As where a connection breaks, below whose lines there was a progress bar."""
    shown, terminal = os.openpty()
    with stderr(terminal), Progress("Training", 3) as progress:
        progress.advance(1)
        log.info("before")
        while b"before" not in os.read(shown, 1 << 20):
            pass  # it comes as the system hands it on
        assert log.lost_lines == 0
        os.close(shown)
        log.info("after")
        progress.advance(2)
    assert log.lost_lines > 0


def test_a_pipe_that_nobody_reads_is_waited_for(pipe: tuple[int, int]) -> None:
    source, sink = pipe
    filled = fill(sink)
    reader = threading.Timer(0.2, lambda: os.read(source, filled))
    reader.start()
    with stderr(sink):
        log.say("after all")
    reader.join()
    assert read(source) == b"after all\n"


def test_but_not_by_a_run_that_is_to_stop(pipe: tuple[int, int], monkeypatch: Patch) -> None:
    fill(pipe[1])
    monkeypatch.setattr(log, "_LOOK", 0.05)
    stopper = threading.Timer(0.2, lambda: setattr(interrupt, "stopping", True))
    stopper.start()
    with stderr(pipe[1]):
        log.say("nobody hears")
    stopper.join()
    assert log.lost_lines == 1


@pytest.mark.parametrize(("lost", "code"), [(0, 0), (3, log.LOST_OUTPUT)])
def test_a_command_says_that_its_log_is_not_whole(lost: int, code: int, monkeypatch: Patch) -> None:
    """Its own log: what an earlier one in this process lost is not its fault."""

    def save_tables(*_: object) -> dict[str, str]:
        log.lost_lines += lost
        return {}

    monkeypatch.setattr(parse_log, "save_tables", save_tables)
    monkeypatch.setattr(log, "lost_lines", 2)
    with pytest.raises(SystemExit) as caught:
        main(["parse_log", "a", "b"])
    assert caught.value.code == code


def test_stdout_that_takes_no_more() -> None:
    command = [sys.executable, "-m", "caffe_dns", "completion", "bash"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "dns: what goes to stdout cannot be written: No space left on device\n"
