"""Image files on disk, read as Caffe reads them, and the lines of files that list them."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager

from caffe_dns.data.datum import Image
from caffe_dns.data.decoding import decode, decoding_memory
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.files.reading import read_file


def read_image(
    path: str, height: int = 0, width: int = 0, *, color: bool = True, nearest: bool = False
) -> Image:
    """An image file as OpenCV gives it: uint8 [height, width, 3] in BGR, or [height, width] gray.

    It is resized if `height` and `width` are positive, with `nearest` to pixels that it has
    (`ReadImageToCVMat` in `util/io.cpp`). Raises CaffeError when the file is missing or no image,
    or where memory does not suffice for that size.
    """
    path = on_disk(path)
    image = decode_file(_content(path), path, color=color)
    try:
        return resized(image, height, width, nearest=nearest)
    except CaffeError as error:
        raise error.locate(file=path) from None


def resized(image: Image, height: int, width: int, *, nearest: bool = False) -> Image:
    """An image as OpenCV has it, resized as by `read_image`."""
    import cv2  # here, because importing it takes long and most runs do not need it

    if height <= 0 or width <= 0:
        return image
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    with resizing(image):
        return cv2.resize(image, (width, height), interpolation=how)


@contextmanager
def resizing(image: Image) -> Iterator[None]:
    """Within it, OpenCV resizes the image; where it cannot, it raises CaffeError."""
    import cv2  # here, because importing it takes long and most runs do not need it

    try:
        yield
    except cv2.error as error:
        raise CaffeError(
            f"an image of {image.shape[0]}x{image.shape[1]} (height, width) cannot be resized: "
            f"{first_line(error)}"
        ) from None


def _content(path: str) -> bytes:
    # Not imread, which writes to stderr about files that are missing.
    try:
        return read_file(path)
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=path) from None


def reading_memory(path: str) -> int:
    """Bytes that it takes to read and decode an image file; 0 for what is none."""
    path = on_disk(path)
    if not os.path.isfile(path):  # to look into a pipe would empty it
        return 0
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return size + decoding_memory(file.read(_HEADER), size)
    except OSError:
        return 0


class ImageFiles:
    """Reads images in colour; with `keep`, each file once, whose bytes stay in memory."""

    def __init__(self, *, keep: bool) -> None:
        self._kept: dict[str, bytes] | None = {} if keep else None

    def read(self, path: str) -> Image:
        """The image as `read_image` gives it. Raises CaffeError as that does."""
        if self._kept is None:
            return decode_file(_content(path), path)
        if path not in self._kept:
            self._kept[path] = _content(path)
        return decode_file(self._kept[path], path)


def decode_file(data: bytes, path: str, *, color: bool = True) -> Image:
    """The image in `data`, the content of the file `path`, as `read_image` gives it."""
    import cv2

    flag = cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE
    image = decode(data, flag, path)
    if image is None:
        raise CaffeError("is not an image that can be decoded", file=path)
    return image


#: Bytes of an image file in which its size stands, as a rule.
_HEADER = 1 << 16
#: Bytes that are looked at to tell text from other files.
_HEAD = 1024


def read_text(path: str) -> bytes:
    """A list file, whose lines end in line feeds alone. Raises CaffeError."""
    try:
        raw = read_file(path)
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=path) from None
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CaffeError("is text in UTF-16; save it as UTF-8", file=path)
    if b"\0" in raw[:_HEAD]:
        what = "an HDF5 file" if raw.startswith(b"\x89HDF") else "a binary file"
        raise CaffeError(f"is {what}; a text file that lists files would be right", file=path)
    return raw.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")


def line_text(line: bytes) -> str:
    """A line of a list file. File names in it need not be UTF-8."""
    return line.decode("utf-8", "surrogateescape")


def read_lines(path: str) -> list[str]:
    """The lines of a list file. Raises CaffeError."""
    text = line_text(read_text(path))
    return text.removesuffix("\n").split("\n") if text else []


def read_words(path: str) -> Iterator[str]:
    """What stands in a list file between blanks and line ends. Raises CaffeError."""
    return (word for line in read_lines(path) for word in line.split())


def whole_number(word: str) -> int:
    """A number in a list, of 32 bits. Raises ValueError for what is none."""
    number = int(word)
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"{number} is none that 32 bits hold")
    return number


def missing_slash(root_folder: str, name: str) -> str:
    """What to say where a file is not there for a folder's lack of a slash, or nothing."""
    if root_folder.endswith("/") or not root_folder:
        return ""
    sought, meant = f"{root_folder}{name}", f"{root_folder}/{name}"
    if os.path.isfile(on_disk(sought)) or not os.path.isfile(on_disk(meant)):
        return ""
    return f"; {sought} is not there, but {meant} is: end the folder in a slash, {root_folder}/"
