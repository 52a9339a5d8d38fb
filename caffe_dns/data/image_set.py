"""From image files to the Datums of a database, as `tools/convert_imageset.cpp` makes them.

This decides what becomes of each listed image; it does not know the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import Message

from caffe_dns import log
from caffe_dns.data.crops import copy_planes
from caffe_dns.data.datum import Buffer, Image, channels_first
from caffe_dns.data.image_files import read_image, reading_memory, resized, resizing
from caffe_dns.data.image_list import ListedImage
from caffe_dns.data.workers import Workers, decoding_threads
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.files.reading import read_file
from caffe_dns.proto.caffe_pb2 import Datum
from caffe_dns.proto.wire import LENGTH, tag, varint


@dataclass(frozen=True)
class Record:
    """A finished record: the serialised Datum, and how many values its image has."""

    key: bytes
    value: Buffer
    num_values: int


@dataclass(frozen=True)
class ImageSet:
    """Listed images and how they are to be stored.

    `encoding` is "png", "jpg" or the like; without one, images that are to be `encoded` keep the
    format that their name ends in. Images are resized where both `height` and `width` are positive,
    or, keeping their shape, where they are smaller than `min_dim` or larger than `max_dim`.

    `annotate`, if any, makes the record: of the image's place in the list, its Datum, and the size
    (height, width) of its file.
    """

    images: Sequence[ListedImage]
    root_folder: str
    height: int = 0
    width: int = 0
    color: bool = True
    encoded: bool = False
    encoding: str = ""
    min_dim: int = 0
    max_dim: int = 0
    annotate: Callable[[int, Datum, tuple[int, int]], Message] | None = None

    def records(self) -> Iterator[Record | None]:
        """The record of each image in order, or None for a file that cannot be read, with a line.

        Raises CaffeError for an image that cannot be encoded.
        """
        workers = Workers(decoding_threads())
        try:
            results = workers.stream(self._convert, range(len(self.images)), self._cost)
            for image, result in zip(self.images, results, strict=True):
                if isinstance(result, CaffeError):
                    path = self.root_folder + image.name
                    log.error(f"Could not open or find file {path} ({result.message})")
                    yield None
                else:
                    yield result
        finally:
            workers.close()

    def _cost(self, index: int) -> int:
        """Bytes that the record of image `index` takes while it is made, if it is not enlarged."""
        return reading_memory(self.root_folder + self.images[index].name)

    def _convert(self, index: int) -> Record | CaffeError:
        """The record of image `index`, or what was wrong with its file."""
        image = self.images[index]
        path = self.root_folder + image.name
        try:
            pixels = read_image(path, color=self.color)
        except CaffeError as error:
            return error
        key = f"{index:08d}_{image.name}".encode("utf-8", "surrogateescape")
        size = pixels.shape[:2]
        try:
            pixels = self._resized(pixels)
        except CaffeError as error:
            raise error.locate(file=path) from None
        return Record(key, self._value(index, path, pixels, size), pixels.size)

    def _value(self, index: int, path: str, pixels: Image, size: tuple[int, int]) -> Buffer:
        """What is stored of image `index`, which has this (height, width) in its file."""
        image = self.images[index]
        encoding = self.encoding or (_guess_encoding(image.name) if self.encoded else "")
        if self.annotate is None and not encoding:
            return _raw_record(pixels, image.label)
        datum = self._encoded(path, pixels, encoding) if encoding else _raw_datum(pixels)
        datum.label = image.label
        if self.annotate is None:
            return datum.SerializeToString()
        # SSD's fork wants to know it of encoded images, too.
        datum.height, datum.width = pixels.shape[:2]
        datum.channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        return self.annotate(index, datum, size).SerializeToString()

    def _resized(self, pixels: Image) -> Image:
        """The image in the size that it is to have (`ReadImageToCVMat`)."""
        import cv2  # here, because importing it takes long and most runs do not need it

        if self.min_dim or self.max_dim:
            factor = self._factor(pixels.shape[:2])
            with resizing(pixels):
                return pixels if factor == 1 else cv2.resize(pixels, (0, 0), fx=factor, fy=factor)
        return resized(pixels, self.height, self.width)

    def _factor(self, size: tuple[int, int]) -> float:
        """By how much an image of this size grows: to min_dim at least, but not over max_dim."""
        factor = np.float32(1)
        if self.min_dim > 0 and min(size) < self.min_dim:
            factor = np.float32(self.min_dim) / np.float32(min(size))
        if 0 < self.max_dim < int(factor * max(size)):
            factor = np.float32(self.max_dim) / np.float32(max(size))
        return float(factor)

    def _encoded(self, path: str, pixels: Image, encoding: str) -> Datum:
        as_it_is = not (self.height or self.width or self.min_dim or self.max_dim)
        if as_it_is and _matches(path, encoding):
            return Datum(data=read_file(path), encoded=True)
        return Datum(data=_encode(pixels, path, encoding), encoded=True)


def _raw_datum(pixels: Image) -> Datum:
    """The Datum with an image's pixels (`CVMatToDatum` in `util/io.cpp`)."""
    planes = channels_first(pixels)
    channels, height, width = planes.shape
    return Datum(
        channels=channels,
        height=height,
        width=width,
        data=planes.tobytes(),
        encoded=False,
    )


def _raw_record(pixels: Image, label: int) -> Buffer:
    """`_raw_datum` with a label, serialised: the message and its bytes would be two copies more."""
    planes = channels_first(pixels)
    channels, height, width = planes.shape
    before = Datum(channels=channels, height=height, width=width).SerializeToString()
    before += tag(Datum.DATA_FIELD_NUMBER, LENGTH) + varint(planes.size)
    after = Datum(label=label, encoded=False).SerializeToString()
    record = np.empty(len(before) + planes.size + len(after), np.uint8)
    end = len(record) - len(after)
    record[: len(before)] = np.frombuffer(before, np.uint8)
    copy_planes(planes, record[len(before) : end].reshape(planes.shape))
    record[end:] = np.frombuffer(after, np.uint8)
    return record.data


def _guess_encoding(name: str) -> str:
    if "." not in name:
        log.warning(f"Failed to guess the encoding of '{name}'")
    return name.rpartition(".")[2].lower()


def _matches(path: str, encoding: str) -> bool:
    """Whether the file is in this format already, going by its name."""
    extension = path.rpartition(".")[2].lower()
    encoding = encoding.lower()
    return extension == encoding or (encoding == "jpg" and extension == "jpeg")


def _encode(pixels: Image, path: str, encoding: str) -> bytes:
    import cv2  # here, because importing it takes long and most runs do not need it

    # OpenCV crashes where a name is not UTF-8.
    if not (encoding.isascii() and cv2.haveImageWriter(f"image.{encoding}")):
        raise CaffeError(
            f"cannot be encoded as '{encoding}', a format that OpenCV does not write; jpg or png "
            "would be right",
            file=path,
        )
    try:
        done, data = cv2.imencode(f".{encoding}", pixels)
    except cv2.error as error:
        done, reason = False, first_line(error)
    else:
        reason = "OpenCV failed"
    if not done:
        raise CaffeError(f"cannot be encoded as '{encoding}': {reason}", file=path)
    return bytes(data)
