"""Processes that decode records beside this one.

Because of Python's lock, the threads of one process decode no more than some 10,000 images a
second. Another process does the same work as this one would; where it cannot, for whatever reason,
the caller does it instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

from caffe_dns import log
from caffe_dns.data.datum import Image
from caffe_dns.data.tasks import Result, Task, TaskMemory


class DecodingProcesses:
    """So many processes at most; none where the system does not let us start any.

    Each has so much memory for a task.
    """

    def __init__(self, count: int, memory: int) -> None:
        self._closed = False
        self._all: list[_Process] = []
        with suppress(OSError):  # out of processes, descriptors or memory
            for _ in range(count):
                self._all.append(_Process(memory))
        self._starting = deque(self._all)
        self._idle: deque[_Process] = deque()

    def run(self, task: Task[Result], images: Image) -> Result | None:
        """Have a process do the task, and copy what it made into `images`. Threads may call it.

        Returns the task's result, or None where there is none or there is no process for it now.
        """
        process = self._take()
        if process is None:
            return None
        try:
            result = process.run(task, images)
        except (EOFError, OSError):
            if not self._closed:
                log.warning("A process that decodes records has ended; the others do its work")
            return None
        self._idle.append(process)
        return result

    def _take(self) -> _Process | None:
        # Other threads take some meanwhile, so to look first would not help.
        with suppress(IndexError):
            return self._idle.pop()
        try:
            process = self._starting.popleft()
        except IndexError:
            return None
        if process.is_ready():
            return process
        self._starting.append(process)
        return None

    def close(self) -> None:
        """End all of them, whatever they are at. Closing twice does nothing."""
        self._closed = True
        for process in self._all:
            process.end()


class _Process:
    """A process that runs `tasks.serve`. Raises OSError where it cannot be started."""

    def __init__(self, size: int) -> None:
        descriptor = os.memfd_create("images")
        try:
            os.ftruncate(descriptor, size)
            self._memory = TaskMemory(descriptor)
            self._pipe, far_end = Pipe()
            with far_end:
                self._process = _start(far_end.fileno(), descriptor)
        finally:
            os.close(descriptor)

    def is_ready(self) -> bool:
        """Whether it has started, or ended."""
        if not self._pipe.poll():
            return False
        with suppress(EOFError, OSError):  # `run` tells of it
            self._pipe.recv()
        return True

    def run(self, task: Task[Result], images: Image) -> Result | None:
        """What `DecodingProcesses.run` does. Raises EOFError or OSError where it has ended."""
        if not self._memory.has_room_for(task):
            return None
        self._pipe.send(task)
        result: Result | None = self._pipe.recv()
        if result is not None:
            images[:] = self._memory.images(task)
        return result

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def _start(pipe: int, memory: int) -> subprocess.Popen[bytes]:
    program = f"from caffe_dns.data.tasks import serve; serve({pipe}, {memory})"
    home = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            # It imports what this process has imported, not what lies in the current folder.
            "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), home]),
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": "1",
        },
        pass_fds=(pipe, memory),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # Signals of the terminal are for this process.
        start_new_session=True,
    )
