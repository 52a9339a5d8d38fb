"""Lists of image files with labels, possibly millions of them, and as a source of records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from caffe_dns import log
from caffe_dns.data.datum import Image, channels_first
from caffe_dns.data.image_files import line_text, missing_slash, read_image, read_text
from caffe_dns.data.sources import ImageSource, Order
from caffe_dns.errors import CaffeError, shortened

#: A line with a label of so few digits that nothing can be wrong with it.
_USUAL = re.compile(r"(.+) ([+-]?[0-9]{1,9})[^\S ]*", re.DOTALL)
#: A label at the end of a line.
_LABELLED = re.compile(r" [+-]?[0-9]+\s*$")
#: What Caffe reads of a label.
_DIGITS = re.compile(r"\s*([+-]?)0*([0-9]+)")
#: More digits than 32 bits hold; Python refuses to make a number of thousands.
_MOST_DIGITS = 20


@dataclass(frozen=True, slots=True)
class ListedImage:
    """A line of an image list."""

    name: str
    label: int


class ImageList(Sequence[ListedImage]):
    """The images of the lines `NAME LABEL` of a list file; a name may hold spaces.

    There may be millions: only the text is kept, and where its lines begin. As in Caffe, a label
    that is no number is 0, of which a warning tells. Raises CaffeError when the file cannot be
    read, is empty, has an empty line, unless `empty_lines` may be there, which name no file, or a
    label that no `int` holds.
    """

    def __init__(self, path: str, *, empty_lines: bool = False) -> None:
        self._text = read_text(path)
        if not self._text:
            raise CaffeError("lists no images", file=path)
        ends = np.flatnonzero(np.frombuffer(self._text, np.uint8) == ord("\n"))
        if self._text.endswith(b"\n"):
            ends = ends[:-1]
        #: Where the lines begin, [N], in the order of the images.
        self.starts = np.concatenate([np.zeros(1, np.int64), ends + 1])
        self._check(path, empty_lines)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> ListedImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[ListedImage]: ...
    def __getitem__(self, index: int | slice) -> ListedImage | list[ListedImage]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return parse_listed(self._line(index))

    def _line(self, index: int) -> str:
        start = int(self.starts[index])
        end = self._text.find(b"\n", start)
        return line_text(self._text[start:] if end < 0 else self._text[start:end])

    def _check(self, path: str, empty_lines: bool) -> None:
        first = wrong = 0
        for number in range(1, len(self) + 1):
            line = self._line(number - 1)
            if _USUAL.fullmatch(line):
                continue
            if not (line.strip() or empty_lines):
                what = "is empty; an image and its label are needed"
                raise CaffeError(what, file=path, line=number)
            label = _parse_unusual(line).label
            if not -(2**31) <= label < 2**31:
                what = f"label {label} is none that 32 bits hold"
                raise CaffeError(what, file=path, line=number)
            if line and not _LABELLED.search(line):
                first, wrong = first or number, wrong + 1
        if wrong:
            _warn(path, first, self._line(first - 1), wrong)


def _warn(path: str, number: int, line: str, wrong: int) -> None:
    """Tell of so many lines whose labels are no numbers, by the first one."""
    _, blank, label = line.rpartition(" ")
    what = f"'{shortened(label)}' is no whole number"
    what = what if blank else "there is no label after a space"
    more = f" ({wrong - 1} more lines are like that)" if wrong > 1 else ""
    read = parse_listed(line).label
    log.warning(f"{path}:{number}: {what}; it is read as {read}, as in Caffe{more}")


def parse_listed(line: str) -> ListedImage:
    """A line of an image list; an empty one names no file."""
    usual = _USUAL.fullmatch(line)
    return ListedImage(usual[1], int(usual[2])) if usual else _parse_unusual(line)


def _parse_unusual(line: str) -> ListedImage:
    name, _, label = line.rpartition(" ")
    digits = _DIGITS.match(label)
    number = int(digits[1] + digits[2][:_MOST_DIGITS]) if digits else 0
    return ListedImage(name or line, number)


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
