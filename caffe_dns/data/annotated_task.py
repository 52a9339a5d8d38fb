"""Decodes and transforms some AnnotatedDatums: work that one process can hand to another."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from caffe_dns.data.annotated_datum import Annotated, parse_annotated
from caffe_dns.data.annotated_transform import AnnotatedTransform
from caffe_dns.data.boxes import Boxes
from caffe_dns.data.crops import ImageShape
from caffe_dns.data.datum import Buffer
from caffe_dns.data.stored import load
from caffe_dns.data.tasks import Task, TaskMemory
from caffe_dns.errors import CaffeError

#: For so many batches a size stays the one.
_BATCHES_OF_A_SIZE = 10


@dataclass(frozen=True)
class DrawnSizes:
    """Which of several sizes records get, drawn anew every ten batches (MobileNet-YOLO)."""

    #: How likely each is; one above 0 at least.
    weights: Sequence[float]
    #: How many records all ranks together read for a batch, and the first record that they read.
    batch: int
    start: int
    #: Draw number N, from [0, 1).
    draw: Callable[[int], float]

    def of(self, record: int) -> int:
        """The place in `weights` of the size for a record, by its number.

        That is the one of its batch, which need not begin at a multiple: a run may go on with
        batches of another size.
        """
        first = record - (record - self.start) % self.batch
        drawn = self.draw(first // (self.batch * _BATCHES_OF_A_SIZE)) * sum(self.weights)
        return bisect(list(accumulate(self.weights))[:-1], drawn)


@dataclass
class AnnotatedMaker:
    """What is done to each record of a layer. It can be sent to other processes."""

    transform: AnnotatedTransform
    #: The generator for a record's draws, by its number.
    draws: Callable[[int], np.random.Generator]
    color: bool
    gray: bool
    with_boxes: bool
    #: Whether each image has a label of its own, `Objects.centred_rows`.
    centred: bool = False
    #: What draws one of the transform's sizes, where there are several.
    sizes: DrawnSizes | None = None

    def parse(self, value: Buffer) -> Annotated:
        """The record in `value` as it is stored. Raises CaffeError."""
        return parse_annotated(value, color=self.color, gray=self.gray)

    def make(self, value: Buffer, number: int) -> Annotated:
        """Record `number` as a net is to see it. Raises CaffeError."""
        record = self.parse(value)
        if self.with_boxes and not record.typed:
            raise CaffeError("a record has no type, so the kind of its objects is unknown")
        which = self.sizes.of(number) if self.sizes else 0
        return self.transform.apply(record, self.draws(number), which)

    def labels(self, record: Annotated, item: int) -> Boxes:
        """What a batch says of its image `item`: a row [N, 8] for each object, or its label [1].

        Or, if `centred`, rows [1, 1, MOST_OBJECTS, 5].
        """
        if self.with_boxes and self.centred:
            return record.objects.centred_rows()[None, None]
        if self.with_boxes:
            return record.objects.rows(item)
        return np.array([record.label], np.float32)


@dataclass
class AnnotatedTask(Task[list[Boxes]]):
    """Records to make, of which the first becomes image `first` of a batch.

    The result is what `AnnotatedMaker.labels` gives for each.
    """

    maker: AnnotatedMaker
    numbers: list[int]
    first: int
    #: Of every image as it comes out.
    shape: ImageShape

    @property
    def images_shape(self) -> tuple[int, int, int, int]:
        return len(self.numbers), *self.shape

    def run(self, memory: TaskMemory) -> list[Boxes] | None:
        images, labels = memory.images(self), []
        for index, value in enumerate(load(self.values)):
            record = self.maker.make(value, self.numbers[index])
            image = record.image.transpose(2, 0, 1)
            if image.dtype != np.uint8 or image.shape != self.shape:
                return None
            images[index] = image
            labels.append(self.maker.labels(record, self.first + index))
        return labels
