"""The files that come with a data set of boxes: the names of labels and of images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from caffe_dns.errors import CaffeError, shortened
from caffe_dns.files.reading import is_count, read_file
from caffe_dns.proto.caffe_pb2 import LabelMap
from caffe_dns.proto.text import read_text


def read_label_map(path: str, *, strict: bool = True) -> LabelMap:
    """The LabelMap in a prototxt.

    Raises CaffeError when it cannot be read or is empty, or, if it is to be `strict`, gives a name
    or a label twice.
    """
    labels = read_text(path, LabelMap).message
    if not labels.item:
        raise CaffeError("names no labels", file=path)
    for field in ("name", "label") if strict else ():
        times = Counter(getattr(item, field) for item in labels.item)
        twice = next((value for value, count in times.items() if count > 1), None)
        if twice is not None:
            raise CaffeError(f"has the {field} '{shortened(str(twice))}' twice", file=path)
    return labels


@dataclass(frozen=True, slots=True)
class NamedImage:
    """A line of a list of images: a name, and the image's height and width in pixels."""

    name: str
    size: tuple[int, int]


def read_names_and_sizes(path: str) -> list[NamedImage]:
    """The lines `NAME HEIGHT WIDTH` of a file. Raises CaffeError with the line that is no such."""
    try:
        lines = read_file(path).decode("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=path) from None
    images = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or not all(is_count(word) and int(word) for word in words[1:]):
            raise CaffeError(
                f"'{shortened(line)}' is not a name, a height and a width in pixels",
                file=path,
                line=number,
            )
        images.append(NamedImage(words[0], (int(words[1]), int(words[2]))))
    if not images:
        raise CaffeError("lists no images", file=path)
    return images
