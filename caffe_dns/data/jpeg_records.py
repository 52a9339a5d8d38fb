"""Encoded Datums of the same layout, examined together: where the JPEGs are, and which suit a GPU.

As in `raw_records`, only what can differ between them is examined, for a whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from caffe_dns.data.datum import ENCODED, IntArray, parse_datum
from caffe_dns.data.plain_jpegs import END, PlainJpeg, PlainJpegs
from caffe_dns.data.raw_records import find_labels
from caffe_dns.data.stored import ByteArray, Span, Value, rows_at, together

#: Bytes of the number that tells how long an image is, at most.
_LONGEST_NUMBER = 4


@dataclass
class JpegRecords:
    """Images in one memory."""

    memory: memoryview
    #: Where each begins there, and how many bytes it has, [N].
    starts: IntArray
    sizes: IntArray
    labels: list[int]
    #: What JPEG each is, [N, 4] as `PlainJpeg` has it, zeros for others.
    kinds: IntArray


def find_jpegs(values: Sequence[Value], jpegs: PlainJpegs) -> JpegRecords | None:
    """The images in these Datums, or None where they have not the same fields.

    Nor where the first is no JPEG for a GPU. Raises CaffeError if the first is no Datum, or one
    cannot be read.
    """
    span = together(values[:1], any_size=True)
    assert span is not None
    first = parse_datum(span.memory[span.starts[0] : span.ends[0]])
    found = jpegs.read(first.data) if first.encoded else None
    if found is None:
        return None
    number = first.data_start - len(_varint(len(first.data)))
    span = together(values, any_size=True)
    assert span is not None
    if (span.ends - span.starts).min() < number + _LONGEST_NUMBER:
        return None
    heads = rows_at(span.memory, span.starts, number + _LONGEST_NUMBER)
    lengths, sizes = _numbers(heads[:, number:])
    starts = span.starts + number + lengths
    if (heads[:, :number] != heads[0, :number]).any() or (starts + sizes > span.ends).any():
        return None
    labels = find_labels(span, starts + sizes, ENCODED)
    if labels is None:
        return None
    kinds = _kinds(Span(span.memory, starts, starts + sizes), jpegs, *found)
    return JpegRecords(span.memory, starts, sizes, labels, kinds)


def _varint(number: int) -> list[int]:
    """The digits of a number as messages have it."""
    return [number & 0x7F] if number < 0x80 else [number & 0x7F | 0x80, *_varint(number >> 7)]


def _numbers(digits: ByteArray) -> tuple[IntArray, IntArray]:
    """How many digits numbers [N] have that begin `digits` [N, 4], and what they are.

    Those that are longer are taken for others, which no image ends at.
    """
    more = np.logical_and.accumulate(digits >= 0x80, 1)
    used = np.hstack([np.ones((len(digits), 1), bool), more[:, :-1]])
    values = (digits & 0x7F).astype(np.int64) << 7 * np.arange(digits.shape[1])
    return used.sum(1), (values * used).sum(1)


def _kinds(span: Span, jpegs: PlainJpegs, header: bytes, kind: PlainJpeg) -> IntArray:
    """The kinds of some images, most of which begin with this header of an image of that kind."""
    kinds = np.zeros((len(span.starts), len(kind)), np.int64)
    sizes = span.ends - span.starts
    alike = sizes >= len(header) + len(END)
    some = alike.nonzero()[0]
    heads = rows_at(span.memory, span.starts[some], len(header))
    tails = rows_at(span.memory, span.ends[some] - len(END), len(END))
    alike[some] = (heads == np.frombuffer(header, np.uint8)).all(1)
    alike[some] &= (tails == np.frombuffer(END, np.uint8)).all(1)
    kinds[alike] = kind
    for index in (~alike).nonzero()[0].tolist():
        other = jpegs.look_at(span.memory[span.starts[index] : span.ends[index]])
        if other is not None:
            kinds[index] = other
    return kinds
