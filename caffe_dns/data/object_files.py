"""Lists of images with the objects in them, and regions to ignore, in MS-CNN's format.

After the head of each image (see `marked_lists`): how many objects, and for each its class, whether
it is ignored, and its corners; how many regions to ignore, and their corners
(`image_gt_data_layer.cpp`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from caffe_dns.data.boxes import Boxes
from caffe_dns.data.marked_lists import ImageHead, log_counts, next_number, read_marked_list
from caffe_dns.errors import CaffeError, shortened


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
    found = read_marked_list(path, root_folder, _read_image)
    samples = Counter({0: 0})
    samples.update(int(label) for image in found for label in image.objects.classes)
    log_counts(len(found), samples)
    return found


def _read_image(head: ImageHead, words: Iterator[str]) -> ListedObjects:
    rows = _read_rows(words, 6)
    if len(rows) and rows[:, 0].min() <= 0:
        raise CaffeError(
            f"gives an object of {shortened(head.path)} the class {rows[:, 0].min():g}; a positive "
            "number would be right"
        )
    objects = Objects(rows[:, 2:], rows[:, 0], rows[:, 1] != 0, _read_rows(words, 4))
    return ListedObjects(head.path, head.shape, objects)


def _read_rows(words: Iterator[str], columns: int) -> Boxes:
    count = next_number(words)
    rows = [[next_number(words) for _ in range(columns)] for _ in range(count)]
    return np.array(rows, np.float64).reshape(count, columns)
