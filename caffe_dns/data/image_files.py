"""Image files on disk: reading one as Caffe does, and lists of them as a source of records."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from caffe_dns import log
from caffe_dns.data.datum import Image, channels_first
from caffe_dns.data.decoding import decode, decoding_memory
from caffe_dns.data.sources import ImageSource, Order
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError, shortened
from caffe_dns.files.reading import read_file


def read_image(
    path: str, height: int = 0, width: int = 0, *, color: bool = True, nearest: bool = False
) -> Image:
    """An image file as OpenCV gives it: uint8 [height, width, 3] in BGR, or [height, width] gray.

    It is resized if `height` and `width` are positive, with `nearest` to pixels that it has
    (`ReadImageToCVMat` in `util/io.cpp`). Raises CaffeError when the file is missing or no image.
    """
    path = on_disk(path)
    return resized(decode_file(_content(path), path, color=color), height, width, nearest=nearest)


def resized(image: Image, height: int, width: int, *, nearest: bool = False) -> Image:
    """An image as OpenCV has it, resized as by `read_image`."""
    import cv2  # here, because importing it takes long and most runs do not need it

    if height <= 0 or width <= 0:
        return image
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=how)


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


#: A label at the end of a line.
_LABELLED = re.compile(r" [+-]?\d+\s*$")
#: A line with a label of so few digits that nothing can be wrong with it.
_USUAL = re.compile(r"(.+) ([+-]?\d{1,9})[^\S ]*", re.DOTALL)
#: More digits than 32 bits hold; Python refuses to make a number of thousands.
_MOST_DIGITS = 20
#: Bytes of an image file in which its size stands, as a rule.
_HEADER = 1 << 16
#: Bytes that are looked at to tell text from other files.
_HEAD = 1024


@dataclass(frozen=True, slots=True)  # of which there are millions
class ListedImage:
    """A line of an image list."""

    name: str
    label: int


def read_image_list(path: str) -> list[ListedImage]:
    """The lines `NAME LABEL` of an image list; the name may hold spaces.

    As in Caffe, a label that is no number is 0. Raises CaffeError when the file cannot be read, is
    empty, or has an empty line.
    """
    lines = read_lines(path)
    if not lines:
        raise CaffeError("lists no images", file=path)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise CaffeError("is empty; an image and its label are needed", file=path, line=number)
    return parse_list(path, lines)


def parse_list(path: str, lines: Sequence[str]) -> list[ListedImage]:
    """The images that the lines of a list name; a warning tells of labels that are no numbers.

    Raises CaffeError for a label that no `int` holds.
    """
    images = []
    first = wrong = 0
    for number, line in enumerate(lines, 1):
        if usual := _USUAL.fullmatch(line):
            images.append(ListedImage(usual[1], int(usual[2])))
            continue
        images.append(parse_listed(line))
        if line and not _LABELLED.search(line):
            first, wrong = first or number, wrong + 1
    if wrong:
        _, blank, label = lines[first - 1].rpartition(" ")
        what = f"'{shortened(label)}' is no whole number"
        what = what if blank else "there is no label after a space"
        listed = parse_listed(lines[first - 1])
        more = f" ({wrong - 1} more lines are like that)" if wrong > 1 else ""
        log.warning(f"{path}:{first}: {what}; it is read as {listed.label}, as in Caffe{more}")
    for number, image in enumerate(images, 1):
        if not -(2**31) <= image.label < 2**31:
            what = f"label {image.label} is none that 32 bits hold"
            raise CaffeError(what, file=path, line=number)
    return images


def parse_listed(line: str) -> ListedImage:
    """A line of an image list; an empty one names no file."""
    name, _, label = line.rpartition(" ")
    digits = re.match(r"\s*([+-]?)0*(\d+)", label)
    number = int(digits[1] + digits[2][:_MOST_DIGITS]) if digits else 0
    return ListedImage(name or line, number)


def read_lines(path: str) -> list[str]:
    """The lines of a list file. File names in it need not be UTF-8. Raises CaffeError."""
    try:
        raw = read_file(path)
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=path) from None
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CaffeError("is text in UTF-16; save it as UTF-8", file=path)
    if b"\0" in raw[:_HEAD]:
        what = "an HDF5 file" if raw.startswith(b"\x89HDF") else "a binary file"
        raise CaffeError(f"is {what}; a text file that lists files would be right", file=path)
    raw = raw.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")
    text = raw.decode("utf-8", "surrogateescape")
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


@dataclass(frozen=True)
class ReadSettings:
    """How the files of a list are read."""

    root_folder: str = ""
    height: int = 0
    width: int = 0
    color: bool = True


class ImageListSource(ImageSource[ListedImage]):
    """The images of a list, over and over (`image_data_layer.cpp`).

    They are the lines of the file `listed_in`. `skip` images are left out at the very beginning;
    `order` says which comes when.
    """

    def __init__(
        self,
        listed_in: str,
        images: Sequence[ListedImage],
        order: Order,
        settings: ReadSettings,
        skip: int = 0,
    ) -> None:
        self._listed_in = listed_in
        self._images = images
        self._order = order
        self._settings = settings
        self._skip = skip

    def fetch(self, record: int) -> ListedImage:
        return self._images[self._order.index(record + self._skip)]

    def decode(self, item: ListedImage) -> tuple[Image, int]:
        settings = self._settings
        image = read_image(
            settings.root_folder + item.name,
            settings.height,
            settings.width,
            color=settings.color,
        )
        return channels_first(image), item.label

    def is_encoded(self, item: ListedImage) -> bool:
        return True

    def explain(self, error: CaffeError, record: int) -> CaffeError:
        folder, name = self._settings.root_folder, self.fetch(record).name
        image = folder + name
        if error.file not in (None, image):  # of which this is not the record's fault
            return error
        line = self._order.index(record + self._skip) + 1
        return CaffeError(
            f"{error.message}{missing_slash(folder, name)} ({self._listed_in}, line {line})",
            file=image,
            layer=error.layer,
            field=error.field,
        )
