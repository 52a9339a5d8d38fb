"""The mean image of a database, as `tools/compute_image_mean.cpp` computes it.

Sums are float32 and taken in the order of the records, so that the mean has Caffe's rounding, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np

from caffe_dns import log
from caffe_dns.data.database import Database
from caffe_dns.data.datum import Image, RawDatum, parse_datum
from caffe_dns.data.decoding import decoding_memory
from caffe_dns.data.raw_records import find_raw
from caffe_dns.data.sources import parse_small
from caffe_dns.data.stored import Value, load
from caffe_dns.data.workers import Workers, decoding_threads
from caffe_dns.errors import CaffeError
from caffe_dns.proto.blobs import array_to_blob
from caffe_dns.proto.caffe_pb2 import BlobProto

_LOG_EVERY = 10000

#: Images of one shape, or a record that may have to be decoded, and how many records lie before.
_Piece: TypeAlias = "tuple[int, RawDatum | Sequence[Image]]"


def image_mean(database: Database, progress: Callable[[int], None]) -> Image:
    """The mean of all records as float32 [channels, height, width].

    `progress` is told how many records are done. Raises CaffeError when there are no records or
    they differ in size.
    """
    total: Image | None = None
    count = 0
    for image in _images(database):
        if total is None:
            log.info("Starting iteration")
            total = np.zeros(image.shape, np.float32)
        if image.size != total.size:
            error = CaffeError(
                f"Incorrect data field size {image.size}: the first has {total.size} values"
            )
            raise database.explain(error, count)
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


def _images(database: Database) -> Iterator[Image]:
    """The images in order; several threads decode them."""

    @contextmanager
    def about(index: int) -> Iterator[None]:
        """Within it, errors are about this record."""
        try:
            yield
        except CaffeError as error:
            raise database.explain(error, index) from None

    def pieces() -> Iterator[_Piece]:
        index = 0
        for values in database.batches():
            with about(index):
                alike = _alike(values)
            if alike is not None:
                yield index, alike
                index += len(values)
                continue
            for value in load(values, keep=True):
                with about(index):
                    datum = parse_datum(value)
                yield index, datum
                index += 1

    def decode(piece: _Piece) -> tuple[bool, Sequence[Image]]:
        """The images of a piece, and whether they were encoded."""
        index, content = piece
        if not isinstance(content, RawDatum):
            return False, content
        with about(index):
            return content.encoded, [content.image()]

    workers = Workers(decoding_threads())
    first = True
    try:
        for encoded, images in workers.stream(decode, pieces(), _cost):
            if first and encoded:
                log.info("Decoding Datum")
            first = False
            yield from images
    except CaffeError as error:
        raise error.locate(file=database.path) from None
    finally:
        workers.close()


def _alike(values: Sequence[Value]) -> Sequence[Image] | None:
    """Images that need no decoding and are of one shape, or None for others.

    Raises CaffeError where the first is no Datum.
    """
    small = parse_small(values)
    if small is not None:
        return list(small[0])
    raw = find_raw(values)
    return None if raw is None else raw.images()


def _cost(piece: _Piece) -> int:
    """Bytes that it takes to decode a piece."""
    _, content = piece
    if not isinstance(content, RawDatum):
        return len(content) * content[0].nbytes
    if content.encoded:
        return decoding_memory(content.data, len(content.data))
    return len(content.data) + (0 if content.float_data is None else content.float_data.nbytes)
