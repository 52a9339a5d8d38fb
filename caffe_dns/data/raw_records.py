"""Raw Datums of one shape, copied many at a time, large ones straight from a database's file.

Only what can differ between them is examined, for a whole batch, and one call of PyTorch copies any
number of crops: a record costs Python next to nothing, and other threads run meanwhile. Encoded
Datums and those of several shapes are left to `datum`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from caffe_dns.data.datum import ENCODED, LABEL_TAG, NOT_ENCODED, Image, IntArray, parse_datum
from caffe_dns.data.stored import Span, Value, rows_at, together
from caffe_dns.errors import CaffeError

#: Bytes of a label with its tag, of which a negative one has most, and of what is behind it.
_LONGEST_LABEL = 11 + len(NOT_ENCODED)


@dataclass
class RawRecords:
    """Images of uint8 [channels, height, width] in one memory."""

    shape: tuple[int, int, int]
    memory: memoryview
    #: Where the pixels of each begin there, [N].
    starts: IntArray
    labels: list[int]

    def images(self) -> list[Image]:
        """The images where they lie."""
        size, pixels = math.prod(self.shape), np.frombuffer(self.memory, np.uint8)
        return [pixels[n : n + size].reshape(self.shape) for n in self.starts.tolist()]

    def copying(self, corners: IntArray, target: Tensor) -> Callable[[range], None]:
        """What puts crops of some images into their places in `target`. Threads may call it.

        `corners` [N, 2] has top and left of each, `target` is [N, channels, h, w].
        """
        _, height, width = self.shape
        offsets = self.starts + corners @ np.array([width, 1])
        first = int(offsets.min())
        # All crops that begin at any byte from there on, of which the wanted ones are taken.
        crops = torch.frombuffer(self.memory, dtype=torch.uint8).as_strided(
            (int(offsets.max()) - first + 1, *target.shape[1:]),
            (1, height * width, width, 1),
            first,
        )
        wanted = torch.from_numpy(offsets - first)

        def copy(some: range) -> None:
            part = slice(some.start, some.stop)
            torch.index_select(crops, 0, wanted[part], out=target[part])

        return copy


def find_raw(values: Sequence[Value]) -> RawRecords | None:
    """The images in these Datums, or None where they are not all raw and of one shape.

    Nor where they are large and in memory already, where to decode them one by one costs no more.

    Raises CaffeError if the first is no Datum, or one cannot be read.
    """
    span = together(values[:1])
    if span is None:
        return None
    first = parse_datum(span.memory[span.starts[0] : span.ends[0]])
    if first.encoded or not len(first.data):
        return None
    image = first.image()
    span = together(values)
    if span is None:
        return None
    pixels = span.starts + first.data_start
    labels = find_labels(span, pixels + image.size, NOT_ENCODED)
    if labels is None:
        return None
    heads = rows_at(span.memory, span.starts, first.data_start)
    if (heads != heads[0]).any():
        return None
    channels, height, width = image.shape
    return RawRecords((channels, height, width), span.memory, pixels, labels)


def find_labels(span: Span, starts: IntArray, encoded: bytes) -> list[int] | None:
    """The labels of values of which nothing else begins at `starts`, or None for others.

    All say NOT_ENCODED, or nothing of it; or, if that is what is wanted, all say ENCODED.
    """
    sizes = span.ends - starts
    most = int(sizes.max())
    # A value that is cut short has no label; before the end of a tiny one there is too little.
    if sizes.min() < 1 or most > _LONGEST_LABEL or span.ends.min() < most:
        return None
    # Copied together: to look for each in memory would take longer than all else.
    tails = rows_at(span.memory, span.ends - most, most).tobytes()
    ends = range(most, len(tails) + 1, most)
    found = [
        _only_label(tails[end - n : end], encoded)
        for end, n in zip(ends, sizes.tolist(), strict=True)
    ]
    labels = [label for label in found if label is not None]
    return labels if len(labels) == len(found) else None


@lru_cache(maxsize=4096)
def _only_label(tail: bytes, encoded: bytes) -> int | None:
    """The label in the fields `tail`, if there is one, and nothing else but `encoded`."""
    if encoded == ENCODED and not tail.endswith(ENCODED):
        return None
    tail = tail.removesuffix(encoded)
    # All bytes of a number but its last have the highest bit.
    if tail[:1] != LABEL_TAG or any(byte < 0x80 for byte in tail[1:-1]):
        return None
    try:
        return parse_datum(tail).label
    except CaffeError:  # whoever decodes it knows which record it is
        return None
