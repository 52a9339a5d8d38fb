"""Weights that share a few values: k-means in one dimension."""

from __future__ import annotations

import numpy as np

#: Float16 holds nothing larger.
_LARGEST = 65504.0
_MOST_ROUNDS = 300


def find_values(entries: np.ndarray, count: int) -> np.ndarray:
    """At most `count` float16 numbers, in ascending order, for entries to be replaced by.

    The sum of squared differences is small: k-means (Lloyd's), begun with values that are spread
    evenly, and with such as stand for equally many entries each, and rounded.
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
    return np.unique(found[int(np.argmin(errors))].astype(np.float16))


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
