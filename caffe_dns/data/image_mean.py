"""The mean image of a database, as `tools/compute_image_mean.cpp` computes it.

Sums are float32 and taken in the order of the records, so that the mean has Caffe's rounding, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from caffe_dns import log
from caffe_dns.data.database import Database
from caffe_dns.data.datum import Image, RawDatum, parse_datum
from caffe_dns.data.decoding import decoding_memory
from caffe_dns.data.workers import Workers, decoding_threads
from caffe_dns.errors import CaffeError
from caffe_dns.proto.blobs import array_to_blob
from caffe_dns.proto.caffe_pb2 import BlobProto

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
            error = CaffeError(
                f"Incorrect data field size {image.size}: the first has {total.size} values"
            )
            raise database.explain(error, count, key)
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
    blob = array_to_blob(mean)
    blob.ClearField("shape")
    blob.num, blob.channels, blob.height, blob.width = 1, channels, height, width
    return blob


def _images(database: Database) -> Iterator[tuple[bytes, Image]]:
    """Keys and images in order; several threads decode them."""

    @contextmanager
    def about(index: int, key: bytes) -> Iterator[None]:
        """Within it, errors are about this record."""
        try:
            yield
        except CaffeError as error:
            raise database.explain(error, index, key) from None

    def records() -> Iterator[tuple[int, bytes, RawDatum]]:
        for index, (key, value) in enumerate(database.records()):
            with about(index, key):
                datum = parse_datum(value)
            yield index, key, datum

    def decode(record: tuple[int, bytes, RawDatum]) -> tuple[bytes, bool, Image]:
        """Key and image of a record, and whether it was encoded."""
        index, key, datum = record
        with about(index, key):
            return key, datum.encoded, datum.image()

    workers = Workers(decoding_threads())
    first = True
    try:
        for key, encoded, image in workers.stream(decode, records(), _cost):
            if first and encoded:
                log.info("Decoding Datum")
            first = False
            yield key, image
    except CaffeError as error:
        raise error.locate(file=database.path) from None
    finally:
        workers.close()


def _cost(record: tuple[int, bytes, RawDatum]) -> int:
    """Bytes that it takes to decode a record."""
    _, _, datum = record
    if datum.encoded:
        return decoding_memory(datum.data, len(datum.data))
    return len(datum.data) + (0 if datum.float_data is None else datum.float_data.nbytes)
