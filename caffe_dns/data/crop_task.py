"""Decodes and crops some records: work that one process can hand to another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caffe_dns.data.crops import Cutter, ImageShape, copy_planes, crop
from caffe_dns.data.datum import Image, IntArray
from caffe_dns.data.decoding import Decoder
from caffe_dns.data.stored import load
from caffe_dns.data.tasks import Task, TaskMemory


@dataclass
class CropTask(Task[IntArray]):
    """Records to decode and crop. What is unusual about one is left to whoever asks for them.

    The result is, for each record, its label, and top, left and mirrored of its crop, [N, 4].
    """

    #: Of each record, three random numbers.
    draws: list[list[int]]
    decoder: Decoder
    cutter: Cutter
    #: Of the images before they are cropped, or, with `any_size`, their channels only.
    shape: ImageShape
    any_size: bool

    @property
    def images_shape(self) -> tuple[int, int, int, int]:
        size = self.cutter.crop_size
        return len(self.draws), *((self.shape[0], size, size) if size else self.shape)

    def run(self, memory: TaskMemory) -> IntArray | None:
        crops, notes = memory.images(self), np.empty((len(self.draws), 4), np.int64)
        for index, value in enumerate(load(self.values)):
            image, label = self.decoder.decode(value)
            if image.dtype != np.uint8 or not self._fits(image):
                return None
            cut = self.cutter.cut(image.shape, self.draws[index])
            copy_planes(crop(image, cut, self.cutter.crop_size), crops[index])
            notes[index] = label, cut.top, cut.left, cut.mirrored
        return notes

    def _fits(self, image: Image) -> bool:
        if not self.any_size:
            return image.shape == self.shape
        return len(image) == self.shape[0] and min(image.shape[1:]) >= self.cutter.crop_size
