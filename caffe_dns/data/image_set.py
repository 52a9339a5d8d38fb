"""Image files to the Datums of a database, as `tools/convert_imageset.cpp` makes them.

What becomes of one listed image is decided here; the database that takes the Datums is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from caffe_dns import log
from caffe_dns.data.datum import Image, channels_first
from caffe_dns.data.image_files import ListedImage, read_image
from caffe_dns.data.workers import Workers, available_cores
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.files.reading import read_file
from caffe_dns.proto.caffe_pb2 import Datum

#: Images that the threads decode before their Datums are handed on.
_AT_ONCE = 64


@dataclass(frozen=True)
class Record:
    """A finished record: the serialized Datum, and how many values its image has."""

    key: bytes
    value: bytes
    num_values: int


@dataclass(frozen=True)
class ImageSet:
    """Listed images and how they are to be stored.

    `encoding` is "png", "jpg" or the like; without one, images that are to be `encoded` keep the
    format that their name ends in. Images are resized where both `height` and `width` are positive.
    """

    images: list[ListedImage]
    root_folder: str
    height: int = 0
    width: int = 0
    color: bool = True
    encoded: bool = False
    encoding: str = ""

    def records(self) -> Iterator[Record | None]:
        """The record of each image in order, or None for a file that cannot be read, with a line.

        Raises CaffeError for an image that cannot be encoded.
        """
        workers = Workers(available_cores())
        results: list[Record | CaffeError] = []

        def place(some: range) -> None:
            for offset in some:
                results[offset] = self._convert(start + offset)

        try:
            for start in range(0, len(self.images), _AT_ONCE):
                count = min(_AT_ONCE, len(self.images) - start)
                results = [CaffeError("not read yet")] * count
                workers.run(place, range(count))
                for image, result in zip(self.images[start:], results, strict=False):
                    if isinstance(result, CaffeError):
                        path = self.root_folder + image.name
                        log.error(f"Could not open or find file {path} ({result.message})")
                        yield None
                    else:
                        yield result
        finally:
            workers.close()

    def _convert(self, index: int) -> Record | CaffeError:
        """The record of image `index`, or what was wrong with its file."""
        image = self.images[index]
        path = self.root_folder + image.name
        try:
            pixels = read_image(path, self.height, self.width, color=self.color)
        except CaffeError as error:
            return error
        datum = self._datum(image, path, pixels)
        datum.label = image.label
        key = f"{index:08d}_{image.name}".encode("utf-8", "surrogateescape")
        return Record(key, datum.SerializeToString(), pixels.size)

    def _datum(self, image: ListedImage, path: str, pixels: Image) -> Datum:
        encoding = self.encoding or (_guess_encoding(image.name) if self.encoded else "")
        if not encoding:
            return _raw_datum(pixels)
        if not self.height and not self.width and _matches(path, encoding):
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
        data=np.ascontiguousarray(planes).tobytes(),
        encoded=False,
    )


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

    try:
        done, data = cv2.imencode(f".{encoding}", pixels)
    except cv2.error as error:
        done, reason = False, first_line(error)
    else:
        reason = "OpenCV failed"
    if not done:
        raise CaffeError(f"cannot be encoded as '{encoding}': {reason}", file=path)
    return bytes(data)
