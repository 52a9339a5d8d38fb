"""Batches of images and the objects in them, from a database of AnnotatedDatum.

What is drawn for a record depends on the seed and the record's number alone, so that it is the same
however records are spread over batches and ranks, and after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caffe_dns.data.annotated_datum import Annotated
from caffe_dns.data.annotated_transform import AnnotatedTransform
from caffe_dns.data.batches import Share
from caffe_dns.data.datum import Buffer, Image
from caffe_dns.data.sources import DatabaseSource
from caffe_dns.data.workers import Workers, reading_threads
from caffe_dns.errors import CaffeError


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
    """Images [N, C, H, W] as they were read, and labels: [1, 1, rows, 8], or [N]."""

    images: Tensor
    labels: Tensor
    normalization: Normalization

    def tops(self, device: torch.device) -> Sequence[Tensor]:
        """Images and labels on `device`, float32."""
        images = self.images.to(device, non_blocking=True)
        return self.normalization.apply(images), self.labels.to(device, non_blocking=True)


class AnnotatedBatches:
    """The batches of one layer, one after the other.

    `parse` reads a record, `draws` gives its generator by its number; `with_boxes` says whether the
    labels are objects.
    """

    def __init__(
        self,
        source: DatabaseSource,
        parse: Callable[[Buffer], Annotated],
        transform: AnnotatedTransform,
        normalization: Normalization,
        draws: Callable[[int], np.random.Generator],
        share: Share,
        batch_size: int,
        *,
        with_boxes: bool,
        for_gpu: bool,
    ) -> None:
        self._source = source
        self._parse = parse
        self._transform = transform
        self._normalization = normalization
        self._draws = draws
        self._numbers = share.batches(batch_size)
        self._with_boxes = with_boxes
        self._pin = for_gpu and torch.cuda.is_available()
        self._workers = Workers(reading_threads(for_gpu=for_gpu))

    def read(self) -> AnnotatedBatch:
        """The next batch. Raises CaffeError for records that cannot be used."""
        numbers = next(self._numbers).tolist()
        items = self._source.fetch_all(numbers)
        made: list[Annotated | None] = [None] * len(items)

        def place(some: range) -> None:
            values = self._source.load([items[index] for index in some])
            for index, value in zip(some, values, strict=True):
                with self._source.at(numbers[index]):
                    made[index] = self._make(value, numbers[index])

        self._workers.run(place, range(len(items)))
        records = [record for record in made if record is not None]
        return AnnotatedBatch(
            self._stack([record.image for record in records], numbers),
            self._labels(records),
            self._normalization,
        )

    def _make(self, value: Buffer, number: int) -> Annotated:
        record = self._parse(value)
        if self._with_boxes and not record.typed:
            raise CaffeError("a record has no type, so that it is not said what its objects are")
        return self._transform.apply(record, self._draws(number))

    def close(self) -> None:
        """Stop the decoding threads and close the source."""
        self._workers.close()
        self._source.close()

    def _stack(self, images: Sequence[Image], numbers: Sequence[int]) -> Tensor:
        first = images[0]
        for image, number in zip(images, numbers, strict=True):
            with self._source.at(number):
                self._check(image, first)
        shape = (len(images), first.shape[2], *first.shape[:2])
        dtype = torch.uint8 if first.dtype == np.uint8 else torch.float32
        stacked = torch.empty(shape, dtype=dtype, pin_memory=self._pin)
        for target, image in zip(stacked.numpy(), images, strict=True):
            target[:] = image.transpose(2, 0, 1)
        return stacked

    def _check(self, image: Image, first: Image) -> None:
        """Raise CaffeError unless `image` can stand in a batch with `first`."""
        shape, wanted = ((each.shape[2], *each.shape[:2]) for each in (image, first))
        self._source.check_alike(shape, wanted, "give a resize_param, or a crop_size")
        if image.dtype != first.dtype:
            raise CaffeError("records with data and records with float_data in one batch")

    def _labels(self, records: Sequence[Annotated]) -> Tensor:
        if not self._with_boxes:
            return torch.tensor([float(record.label) for record in records])
        rows = np.concatenate([each.objects.rows(i) for i, each in enumerate(records)])
        if not len(rows):
            rows = np.full((1, 8), -1, np.float32)
        labels = torch.from_numpy(rows)[None, None]
        return labels.pin_memory() if self._pin else labels
