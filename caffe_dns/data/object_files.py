"""Lists of images with the objects in them, and regions of no interest, as MS-CNN writes them.

For each image: `# NUMBER`, its path, channels, height and width; how many objects, and of each its
class, whether it is ignored, and its corners; how many regions of no interest, and their corners
(`image_gt_data_layer.cpp`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from caffe_dns import log
from caffe_dns.data.boxes import Boxes
from caffe_dns.data.image_files import read_words
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError


@dataclass(frozen=True)
class Objects:
    """What is in an image: boxes [n, 4] in pixels, classes [n], which are ignored [n].

    `aside` [m, 4] are regions of no interest.
    """

    boxes: Boxes
    classes: Boxes
    ignored: Boxes
    aside: Boxes


@dataclass(frozen=True)
class ListedObjects:
    """An image of a list: its path, (channels, height, width), and what is in it."""

    path: str
    shape: tuple[int, int, int]
    objects: Objects


def read_object_file(path: str, root_folder: str) -> list[ListedObjects]:
    """The images of a list. Raises CaffeError for one that cannot be read or breaks the format."""
    found: list[ListedObjects] = []
    words = read_words(path)
    try:
        for mark in words:
            if mark != "#":
                raise CaffeError(f"has '{mark}' where '#' and an image should stand")
            found.append(_read_image(words, root_folder))
    except (StopIteration, ValueError):
        image = found[-1].path if found else "the first image"
        raise CaffeError(f"breaks the format at or after {image}", file=path) from None
    except CaffeError as error:
        raise error.locate(file=path) from None
    if not found:
        raise CaffeError("Window file is empty", file=path)
    _log_counts(found)
    return found


def _read_image(words: Iterator[str], root_folder: str) -> ListedObjects:
    next(words)  # its number, of which nothing depends
    path = on_disk(root_folder) + next(words)
    channels, height, width = [int(next(words)) for _ in range(3)]
    rows = _read_rows(words, 6)
    if len(rows) and rows[:, 0].min() <= 0:
        raise CaffeError(
            f"gives an object of {path} the class {rows[:, 0].min():g}; a positive number would "
            "be right"
        )
    objects = Objects(rows[:, 2:], rows[:, 0], rows[:, 1] != 0, _read_rows(words, 4))
    return ListedObjects(path, (channels, height, width), objects)


def _read_rows(words: Iterator[str], columns: int) -> Boxes:
    count = int(next(words))
    rows = [[int(next(words)) for _ in range(columns)] for _ in range(count)]
    return np.array(rows, np.float64).reshape(count, columns)


def _log_counts(images: list[ListedObjects]) -> None:
    log.info(f"Number of images: {len(images)}")
    classes = Counter(int(label) for image in images for label in image.objects.classes)
    for label in sorted({0, *classes}):
        log.info(f"class {label} has {classes[label]} samples")
