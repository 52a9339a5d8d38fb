"""Work on some records that one process can hand to another, in memory that both share.

Without PyTorch, which would take a process seconds to load.
"""

from __future__ import annotations

import math
import mmap
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import numpy as np

from caffe_dns import log
from caffe_dns.data.datum import Buffer, Image
from caffe_dns.errors import CaffeError

Result = TypeVar("Result")


@dataclass(kw_only=True)
class Task(ABC, Generic[Result]):
    """Makes images of one shape from records, and a result that is small and can be sent."""

    #: Bytes of each record, once these are in memory.
    sizes: list[int] = field(default_factory=list)

    @property
    @abstractmethod
    def images_shape(self) -> tuple[int, int, int, int]:
        """The shape of all images together, [N, channels, height, width]."""

    @abstractmethod
    def run(self, memory: TaskMemory) -> Result | None:
        """Put the images of the records there into their places.

        None where one does not belong there. Raises CaffeError where one cannot be used.
        """


class TaskMemory:
    """Memory that two processes share: the images of a task, then its records."""

    def __init__(self, descriptor: int) -> None:
        self._bytes = memoryview(mmap.mmap(descriptor, 0))

    def images(self, task: Task[Any]) -> Image:
        """Pixels of the images, [N, channels, height, width]."""
        shape = task.images_shape
        return np.frombuffer(self._bytes, np.uint8, math.prod(shape)).reshape(shape)

    def fill(self, task: Task[Any], values: Iterable[Buffer]) -> bool:
        """Put the records there. False where there is no room for them."""
        end = math.prod(task.images_shape)
        for value in values:
            start, end = end, end + len(value)
            if end > len(self._bytes):
                return False
            self._bytes[start:end] = value
            task.sizes.append(len(value))
        return True

    def values(self, task: Task[Any]) -> Iterable[memoryview]:
        """The records."""
        end = math.prod(task.images_shape)
        for size in task.sizes:
            start, end = end, end + size
            yield self._bytes[start:end]


def serve(pipe: int, memory: int) -> None:
    """Run the tasks that come through a pipe, in memory shared with the process that sends them.

    Both are descriptors. Answers what `Task.run` gives, and None also where that would raise or
    say anything. Ends when the other end of the pipe is closed: signals are for the process
    there.
    """
    import cv2

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    connection, shared = Connection(pipe), TaskMemory(memory)
    with suppress(EOFError, OSError):
        connection.send(None)  # ready
        while True:
            connection.send(_answer(connection.recv(), shared))


def _answer(task: Task[Any], memory: TaskMemory) -> Any:
    said: list[str] = []
    log.set_sink(said.append)
    try:
        result = task.run(memory)
    except (CaffeError, MemoryError):
        return None
    return None if said else result
