"""Batches of images and the objects in them, from a database of AnnotatedDatum.

Random choices for a record depend only on the seed and the record's number, so that they are the
same however records are distributed over batches and ranks, and after a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caffe_dns.data.annotated_task import AnnotatedMaker, AnnotatedTask
from caffe_dns.data.batches import Share
from caffe_dns.data.boxes import Boxes
from caffe_dns.data.datum import Image
from caffe_dns.data.decoding_processes import DecodingProcesses
from caffe_dns.data.sources import DatabaseSource
from caffe_dns.data.stored import sendable
from caffe_dns.data.workers import Workers, decoding_processes, reading_threads
from caffe_dns.errors import CaffeError

#: Of so many records at least is it worth a while to hand them over.
_TOGETHER = 4
_ADVICE = "give a resize_param, or a crop_size"


@dataclass(frozen=True)
class Normalization:
    """What is subtracted, None or an array that broadcasts to [C, H, W], and the factor then."""

    mean: Tensor | None
    scale: float

    def apply(self, pixels: Tensor) -> Tensor:
        """Images [N, C, H, W] as float32."""
        values = pixels.to(torch.float32)
        if self.mean is not None:
            values = values - self.mean.to(values.device, non_blocking=True)
        return values * self.scale if self.scale != 1 else values


@dataclass(frozen=True)
class AnnotatedBatch:
    """Images [N, C, H, W] as they were read; labels [1, 1, rows, 8], [N, 1, rows, 5] or [N]."""

    images: Tensor
    labels: Tensor
    normalization: Normalization

    def tops(self, device: torch.device) -> Sequence[Tensor]:
        """Images and labels on `device`, float32."""
        images = self.images.to(device, non_blocking=True)
        return self.normalization.apply(images), self.labels.to(device, non_blocking=True)


class AnnotatedBatches:
    """The batches of one layer, one after the other, of records that `maker` makes."""

    def __init__(
        self,
        source: DatabaseSource,
        maker: AnnotatedMaker,
        normalization: Normalization,
        share: Share,
        batch_size: int,
        *,
        for_gpu: bool,
    ) -> None:
        self._source = source
        self._maker = maker
        self._normalization = normalization
        self._numbers = share.batches(batch_size)
        self._pin = for_gpu and torch.cuda.is_available()
        #: How many processes make records for this one, which start when they are first needed.
        self._processes = decoding_processes(share.ranks_here, batch_size) if for_gpu else 0
        self._others: DecodingProcesses | None = None
        self._workers = Workers(self._processes or reading_threads(for_gpu=for_gpu))

    def read(self) -> AnnotatedBatch:
        """The next batch. Raises CaffeError for records that cannot be used."""
        numbers = next(self._numbers).tolist()
        items = self._source.fetch_all(numbers)
        (value,) = self._source.load(items[:1])
        with self._source.at(numbers[0]):
            record = self._maker.make(value, numbers[0])
            labels = [self._maker.labels(record, 0)] * len(items)
        images = self._new_images(record.image, len(numbers))
        pixels = images.numpy()
        if self._processes and self._others is None and pixels.dtype == np.uint8:
            sizes = self._maker.transform.sizes
            most = max([pixels[0, 0].size, *(size.height * size.width for size in sizes)])
            self._others = DecodingProcesses(self._processes, most * pixels.shape[1] * len(pixels))
        pixels[0] = record.image.transpose(2, 0, 1)

        def place(some: range) -> None:
            part = slice(some.start, some.stop)
            values = sendable(items[part])
            task = AnnotatedTask(values, self._maker, numbers[part], some.start, pixels.shape[1:])
            made = self._make_elsewhere(task, pixels[part])
            labels[part] = made or self._make(task, pixels[part])

        self._workers.run(place, range(1, len(items)), _TOGETHER)
        return AnnotatedBatch(images, self._join(labels), self._normalization)

    def _make_elsewhere(self, task: AnnotatedTask, images: Image) -> list[Boxes] | None:
        """Have another process do the task; None if none did."""
        if self._others is None or images.dtype != np.uint8:
            return None
        return self._others.run(task, images)

    def _make(self, task: AnnotatedTask, images: Image) -> list[Boxes]:
        """Do the task here."""
        labels = []
        for index, value in enumerate(self._source.load(task.values)):
            with self._source.at(task.numbers[index]):
                record = self._maker.make(value, task.numbers[index])
                image = record.image.transpose(2, 0, 1)
                self._source.check_alike(image.shape, task.shape, _ADVICE)
                if image.dtype != images.dtype:
                    raise CaffeError("records with data and records with float_data in one batch")
                labels.append(self._maker.labels(record, task.first + index))
            images[index] = image
        return labels

    def close(self) -> None:
        """Stop what makes records and close the source."""
        if self._others is not None:
            self._others.close()
        self._workers.close()
        self._source.close()

    def _new_images(self, first: Image, count: int) -> Tensor:
        """Room for so many images like this one [height, width, channels]."""
        shape = (count, first.shape[2], *first.shape[:2])
        dtype = torch.uint8 if first.dtype == np.uint8 else torch.float32
        return torch.empty(shape, dtype=dtype, pin_memory=self._pin)

    def _join(self, labels: Sequence[Boxes]) -> Tensor:
        rows = np.concatenate(labels)
        if not self._maker.with_boxes or self._maker.centred:
            return torch.from_numpy(rows)
        if not len(rows):
            rows = np.full((1, 8), -1, np.float32)
        result = torch.from_numpy(rows)[None, None]
        return result.pin_memory() if self._pin else result
