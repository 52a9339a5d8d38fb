"""Large raw Datums of one shape, copied from a database's file many at once.

Only what can differ between them is looked at, and one call of PyTorch copies any number of crops:
a record costs Python next to nothing, and other threads run meanwhile. Small Datums, encoded ones
and those of several shapes are left to `datum`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from caffe_dns.data.datum import LABEL_TAG, NOT_ENCODED, Image, IntArray, parse_datum
from caffe_dns.data.stored import Span, Value, load, load_spans


@dataclass
class RawRecords:
    """Images of uint8 [channels, height, width], most likely all of them like the first."""

    #: The first image.
    first: Image
    #: What comes before the pixels of the first record.
    head: bytes
    values: Sequence[Value]

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.first.shape
        return channels, height, width

    def copy(self, corners: IntArray, target: Tensor, labels: Tensor, some: slice) -> bool:
        """Read some images, and put their crops and labels into their places.

        `corners` [N, 2] has top and left of each, `target` is [N, channels, h, w], `labels` [N].
        Threads may call it. False where one of the records is not like the first; some places are
        filled then. Raises CaffeError where one cannot be read.
        """
        found: list[int] = []
        for span in load_spans(self.values[some]):
            start = some.start + len(found)
            if not self._find_labels(span, found):
                return False
            places = slice(start, some.start + len(found))
            self._copy_crops(span, corners[places], target[places])
        labels[some] = torch.tensor(found, dtype=labels.dtype)
        return True

    def _copy_crops(self, span: Span, corners: IntArray, target: Tensor) -> None:
        _, height, width = self.shape
        offsets = np.array(span.starts) + len(self.head) + corners @ np.array([width, 1])
        first = int(offsets.min())
        # All crops that begin at any byte from there on, of which the wanted ones are taken.
        crops = torch.frombuffer(span.memory, dtype=torch.uint8).as_strided(
            (int(offsets.max()) - first + 1, *target.shape[1:]),
            (1, height * width, width, 1),
            first,
        )
        torch.index_select(crops, 0, torch.from_numpy(offsets - first), out=target)

    def _find_labels(self, span: Span, labels: list[int]) -> bool:
        """Add the labels of the records there, unless one is not like the first."""
        memory, head = span.memory, self.head
        to_tail = len(head) + self.first.size
        for start, end in zip(span.starts, span.ends, strict=True):
            # A value that is cut short has no label here.
            label = _only_label(bytes(memory[min(start + to_tail, end) : end]))
            if label is None or memory[start : start + len(head)] != head:
                return False
            labels.append(label)
        return True


def find_raw(values: Sequence[Value]) -> RawRecords | None:
    """The images in these Datums, or None where the first is not raw.

    Raises CaffeError if the first is no Datum.
    """
    value = next(load(values[:1], keep=True))
    first = parse_datum(value)
    if first.encoded or not len(first.data):
        return None
    return RawRecords(first.image(), bytes(value[: first.data_start]), values)


@lru_cache(maxsize=4096)
def _only_label(tail: bytes) -> int | None:
    """The label in the fields `tail`, if there is one and nothing else but "not encoded"."""
    tail = tail.removesuffix(NOT_ENCODED)
    # All bytes of a number but its last have the highest bit.
    if tail[:1] != LABEL_TAG or any(byte < 0x80 for byte in tail[1:-1]):
        return None
    return parse_datum(tail).label
