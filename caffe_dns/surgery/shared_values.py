"""Weights that share a few values: k-means in one dimension."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

#: Float16 holds nothing larger.
_LARGEST = 65504.0
_MOST_ROUNDS = 300
#: How many significant bits a value has beyond those of an index of all values.
_BITS_BEYOND = 3
_FLOAT32_BITS = 24

Numbers = TypeVar("Numbers", np.ndarray, Tensor)


def rounded(values: Numbers, count: int) -> Numbers:
    """Float32 numbers, of as few significant bits as `count` values need to be told apart well.

    Bits that are 0 in all of them cost next to nothing in a compact file.
    """
    bits = (count - 1).bit_length() + _BITS_BEYOND
    # What Dekker's splitting leaves of a number is its nearest of so few bits.
    scaled = values * (2.0 ** (_FLOAT32_BITS - bits) + 1)
    return scaled - (scaled - values)


def find_values(entries: np.ndarray, count: int) -> np.ndarray:
    """At most `count` float16 numbers, in ascending order, for entries to be replaced by.

    The sum of squared differences is small: k-means (Lloyd's), begun with values that are spread
    evenly, and with such as stand for equally many entries each, and rounded (`rounded`).
    """
    ordered = np.sort(entries.astype(np.float64).reshape(-1).clip(-_LARGEST, _LARGEST))
    distinct = np.unique(ordered.astype(np.float16))
    if len(distinct) <= count and np.isin(ordered, distinct).all():
        return distinct
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    places = ((np.arange(count) + 0.5) * len(ordered) / count).astype(int)
    begins = [np.linspace(ordered[0], ordered[-1], count), ordered[places]]
    found = [_settle(ordered, sums, values) for values in begins]
    errors = [float(((values[nearest(values, ordered)] - ordered) ** 2).sum()) for values in found]
    best = rounded(found[int(np.argmin(errors))].astype(np.float32), count)
    return np.unique(best.clip(-_LARGEST, _LARGEST).astype(np.float16))


def nearest(values: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """The index of the value (ascending) that is nearest to each entry; int64."""
    exact = values.astype(np.float64)
    return np.searchsorted((exact[1:] + exact[:-1]) / 2, entries)


def _settle(ordered: np.ndarray, sums: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Move values to the means of the entries that are nearest to them, until none moves."""
    for _ in range(_MOST_ROUNDS):
        inner = np.searchsorted(ordered, (values[1:] + values[:-1]) / 2)
        bounds = np.concatenate([[0], inner, [len(ordered)]])
        counts = np.diff(bounds)
        means = np.diff(sums[bounds]) / np.maximum(counts, 1)
        moved = np.where(counts > 0, means, values)
        if np.array_equal(moved, values):
            break
        values = moved
    return values
