"""The mean image of a database, as `tools/compute_image_mean.cpp` computes it.

Sums are float32 and taken in the order of the records, so that the mean has Caffe's rounding, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from caffe_dns import log
from caffe_dns.data.database import Database
from caffe_dns.data.datum import Image, RawDatum, parse_datum
from caffe_dns.data.workers import Workers, available_cores
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import BlobProto

#: Records that the threads decode before they are summed.
_AT_ONCE = 64
_LOG_EVERY = 10000


def image_mean(database: Database, progress: Callable[[int], None]) -> Image:
    """The mean of all records as float32 [channels, height, width].

    `progress` is told how many records are done. Raises CaffeError when there are no records or
    they differ in size.
    """
    total: Image | None = None
    count = 0
    for key, image in _images(database):
        if total is None:
            log.info("Starting iteration")
            total = np.zeros(image.shape, np.float32)
        if image.size != total.size:
            raise CaffeError(
                f"Incorrect data field size {image.size}: record {key.decode(errors='replace')!r} "
                f"differs from the first, which has {total.size} values",
                file=database.path,
            )
        total += image.reshape(total.shape)
        count += 1
        progress(count)
        if count % _LOG_EVERY == 0:
            log.info(f"Processed {count} files.")
    if total is None:
        raise CaffeError("the database has no records", file=database.path)
    if count % _LOG_EVERY:
        log.info(f"Processed {count} files.")
    total /= np.float32(count)
    return total


def mean_values(mean: Image) -> list[float]:
    """The mean of each channel; summed value by value, as Caffe rounds it."""
    planes = mean.reshape(mean.shape[0], -1)
    return [float(np.add.accumulate(p)[-1] / np.float32(p.size)) for p in planes]


def mean_to_blob(mean: Image) -> BlobProto:
    """The mean as a `mean_file` holds it, with the legacy 4-D shape."""
    channels, height, width = mean.shape
    blob = BlobProto(num=1, channels=channels, height=height, width=width)
    blob.data.extend(mean.ravel().tolist())
    return blob


def _images(database: Database) -> Iterator[tuple[bytes, Image]]:
    """Keys and images in order; encoded ones are decoded by several threads."""
    workers = Workers(available_cores())
    records = iter(database.records())
    first = True
    try:
        while chunk := list(islice(records, _AT_ONCE)):
            datums = [parse_datum(value) for _, value in chunk]
            if first and datums[0].encoded:
                log.info("Decoding Datum")
            first = False
            keys = (key for key, _ in chunk)
            yield from zip(keys, _decode(datums, workers), strict=True)
    except CaffeError as error:
        raise error.locate(file=database.path) from None
    finally:
        workers.close()


def _decode(datums: Sequence[RawDatum], workers: Workers) -> Sequence[Image]:
    if not datums[0].encoded:
        return [datum.image() for datum in datums]
    images: list[Image] = [np.empty(0)] * len(datums)

    def place(some: range) -> None:
        for index in some:
            images[index] = datums[index].image()

    workers.run(place, range(len(datums)))
    return images
