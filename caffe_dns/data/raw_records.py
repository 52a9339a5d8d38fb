"""Large raw Datums of one shape, found in a database's memory and copied from there, many at once.

Only what can differ between them is read, and one call of PyTorch copies any number of crops: a
record costs Python next to nothing, and other threads run meanwhile. Small Datums, encoded ones and
those of several shapes are left to `datum`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_dns.data.datum import LABEL_TAG, NOT_ENCODED, Buffer, Image, IntArray, parse_datum

#: More elements than this a tensor cannot have.
_MOST_ELEMENTS = 1 << 62


class _Memory:
    """Memory at an address as what numpy can make an array of; keeps its `owner` alive."""

    def __init__(
        self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], owner: object
    ) -> None:
        self.__array_interface__ = {
            # Marked as writable, or PyTorch would warn; nothing is written.
            "data": (address, False),
            "shape": shape,
            "strides": strides,
            "typestr": "|u1",
            "version": 3,
        }
        self._owner = owner


@dataclass
class RawRecords:
    """Images of uint8 [channels, height, width] that lie anywhere in memory."""

    shape: tuple[int, int, int]
    #: Of each image's first pixel.
    addresses: IntArray
    labels: IntArray
    #: What was read, to be kept while its memory is used.
    values: Sequence[Buffer]

    def copy(self, corners: IntArray, target: Tensor, some: slice) -> None:
        """Copy the crops of some images to their places in `target` [N, channels, h, w].

        `corners` [N, 2] has top and left of each.
        """
        channels, height, width = self.shape
        places = self.addresses[some] + corners[some] @ np.array([width, 1])
        first = int(places.min())
        # A tensor of the crops at every address from there on, of which the wanted ones are taken.
        memory: Any = _Memory(
            first,
            (int(places.max()) - first + 1, channels, *target.shape[2:]),
            (1, height * width, width, 1),
            self.values,
        )
        crops = torch.from_numpy(np.asarray(memory))
        torch.index_select(crops, 0, torch.from_numpy(places - first), out=target[some])


def find_raw(values: Sequence[Buffer]) -> RawRecords | None:
    """The images in these Datums, or None where they are not all raw and of one shape.

    Raises CaffeError if the first is no Datum.
    """
    first = parse_datum(values[0])
    if first.encoded or not len(first.data):
        return None
    image = first.image()
    start, end = first.data_start, first.data_start + len(first.data)
    head = bytes(values[0][:start])
    labels = []
    for value in values:
        # A value that is cut short has no label here.
        label = _only_label(bytes(value[end:]))
        if label is None or bytes(value[:start]) != head:
            return None
        labels.append(label)
    addresses = np.array([_address(value) for value in values]) + start
    span = int(addresses.max() - addresses.min()) + len(first.data)
    if span * len(first.data) > _MOST_ELEMENTS:
        return None
    channels, height, width = image.shape
    return RawRecords((channels, height, width), addresses, np.array(labels), values)


@lru_cache(maxsize=4096)
def _only_label(tail: bytes) -> int | None:
    """The label in the fields `tail`, if there is one and nothing else but "not encoded"."""
    tail = tail.removesuffix(NOT_ENCODED)
    # All bytes of a number but its last have the highest bit.
    if tail[:1] != LABEL_TAG or any(byte < 0x80 for byte in tail[1:-1]):
        return None
    return parse_datum(tail).label


def _address(value: Buffer) -> int:
    array: Image = np.frombuffer(value, np.uint8)
    address: int = array.__array_interface__["data"][0]
    return address
