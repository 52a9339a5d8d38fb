"""Decoding and cropping some records: work that one process can hand to another.

Without PyTorch, which would take a process seconds to load.
"""

from __future__ import annotations

import math
import mmap
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import numpy as np

from caffe_dns import log
from caffe_dns.data.cuts import Cutter, ImageShape, copy_planes, crop
from caffe_dns.data.datum import Buffer, Image, IntArray
from caffe_dns.data.decoding import Decoder
from caffe_dns.errors import CaffeError

#: Of each record: label, and top, left and mirrored of its crop.
_NOTES = 4


@dataclass
class CropTask:
    """Records to decode and crop. What is unusual about one is left to whoever asks for them."""

    #: Of each record, three random numbers.
    draws: list[list[int]]
    decoder: Decoder
    cutter: Cutter
    #: Of the images before they are cropped, or, with `any_size`, their channels only.
    shape: ImageShape
    any_size: bool
    #: Bytes of each record, once these are in memory.
    sizes: list[int] = field(default_factory=list)

    @property
    def crops_shape(self) -> tuple[int, int, int, int]:
        """The shape of all crops together, [N, channels, height, width]."""
        size = self.cutter.crop_size
        return len(self.draws), *((self.shape[0], size, size) if size else self.shape)

    def run(self, memory: TaskMemory) -> bool:
        """Put crops and notes of the records there into their places.

        False where one does not belong there. Raises CaffeError where one cannot be decoded.
        """
        crops, notes = memory.crops(self), memory.notes(self)
        for index, value in enumerate(memory.values(self)):
            image, label = self.decoder.decode(value)
            if image.dtype != np.uint8 or not self._fits(image):
                return False
            cut = self.cutter.cut(image.shape, self.draws[index])
            copy_planes(crop(image, cut, self.cutter.crop_size), crops[index])
            notes[index] = label, cut.top, cut.left, cut.mirrored
        return True

    def _fits(self, image: Image) -> bool:
        if not self.any_size:
            return image.shape == self.shape
        return len(image) == self.shape[0] and min(image.shape[1:]) >= self.cutter.crop_size


class TaskMemory:
    """Memory that two processes share: notes of a task's records, their crops, the records."""

    def __init__(self, descriptor: int) -> None:
        self._bytes = memoryview(mmap.mmap(descriptor, 0))

    @staticmethod
    def size_for(crops_shape: tuple[int, ...], values: int) -> int:
        """How many bytes such crops need, with records of so many bytes together."""
        return 8 * _NOTES * crops_shape[0] + math.prod(crops_shape) + values

    def notes(self, task: CropTask) -> IntArray:
        """Label, top, left and mirrored of each record, [N, 4]."""
        count = len(task.draws)
        return np.frombuffer(self._bytes, np.int64, _NOTES * count).reshape(count, _NOTES)

    def crops(self, task: CropTask) -> Image:
        """Pixels of the crops, [N, channels, height, width]."""
        shape = task.crops_shape
        start = self.size_for((shape[0], 0), 0)
        return np.frombuffer(self._bytes, np.uint8, math.prod(shape), start).reshape(shape)

    def fill(self, task: CropTask, values: Iterable[Buffer]) -> bool:
        """Put the records there. False where there is no room for them."""
        end = self.size_for(task.crops_shape, 0)
        for value in values:
            start, end = end, end + len(value)
            if end > len(self._bytes):
                return False
            self._bytes[start:end] = value
            task.sizes.append(len(value))
        return True

    def values(self, task: CropTask) -> Iterable[memoryview]:
        """The records."""
        end = self.size_for(task.crops_shape, 0)
        for size in task.sizes:
            start, end = end, end + size
            yield self._bytes[start:end]


def serve(pipe: int, memory: int) -> None:
    """Run the tasks that come through a pipe, in memory shared with the process that sends them.

    Both are descriptors. Answers what `CropTask.run` gives, and False also where that would raise
    or say anything. Ends when the other end of the pipe is closed: signals are for the process
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


def _answer(task: CropTask, memory: TaskMemory) -> bool:
    said: list[str] = []
    log.set_sink(said.append)
    try:
        return task.run(memory) and not said
    except (CaffeError, MemoryError):
        return False
