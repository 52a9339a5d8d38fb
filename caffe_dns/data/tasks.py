"""Work on some records that one process can hand to another, in shared memory.

It does without PyTorch, which a process would need seconds to load.
"""

from __future__ import annotations

import math
import mmap
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import numpy as np

from caffe_dns import log
from caffe_dns.data.datum import Image
from caffe_dns.data.stored import StoredValue
from caffe_dns.errors import CaffeError

Result = TypeVar("Result")


@dataclass
class Task(ABC, Generic[Result]):
    """Makes images of one shape from records, and a result that is small and can be sent."""

    #: The records, of which another process itself reads those that have not been read yet.
    values: Sequence[bytes | StoredValue]

    @property
    @abstractmethod
    def images_shape(self) -> tuple[int, int, int, int]:
        """The shape of all images together, [N, channels, height, width]."""

    @abstractmethod
    def run(self, memory: TaskMemory) -> Result | None:
        """Put the images of the records into their places there.

        None where one does not belong there. Raises CaffeError where one cannot be read or used.
        """


class TaskMemory:
    """Memory that two processes share, for the images of a task."""

    def __init__(self, descriptor: int) -> None:
        self._bytes = memoryview(mmap.mmap(descriptor, 0))

    def images(self, task: Task[Any]) -> Image:
        """Pixels of the images, [N, channels, height, width]."""
        shape = task.images_shape
        return np.frombuffer(self._bytes, np.uint8, math.prod(shape)).reshape(shape)

    def has_room_for(self, task: Task[Any]) -> bool:
        """Whether the images of a task fit into it."""
        return math.prod(task.images_shape) <= len(self._bytes)


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
            connection.send(_answer(connection, shared))


def _answer(connection: Connection, memory: TaskMemory) -> Any:
    said: list[str] = []
    log.set_sink(said.append)
    try:
        task: Task[Any] = connection.recv()  # which opens the file of its records
        result = task.run(memory)
    except (CaffeError, MemoryError):
        return None
    return None if said else result
