"""Runs a net over more records than its batch has, for `forward_all` and the like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from caffe_dns.errors import CaffeError

Arrays = Mapping[str, np.ndarray]


def records(arrays: Arrays) -> int:
    """How many records the arrays have. Raises CaffeError when there is no array."""
    if not arrays:
        raise CaffeError("no array is given; give one for each input by its name")
    return len(next(iter(arrays.values())))


def split(arrays: Arrays, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `arrays`, which all have as many records; the last is filled up with zeros."""
    for start in range(0, records(arrays) if arrays else 0, batch_size):
        yield {
            name: _filled_up(np.asarray(array[start : start + batch_size]), batch_size)
            for name, array in arrays.items()
        }


def collect(batches: dict[str, list[np.ndarray]], batch: Arrays) -> None:
    """Append copies of the arrays of one batch."""
    for name, array in batch.items():
        batches.setdefault(name, []).append(array.copy())


def join(batches: Mapping[str, list[np.ndarray]], records: int) -> dict[str, np.ndarray]:
    """The batches of each blob behind one another, without the filling.

    A blob with a single value for a batch gives one value for each.
    """
    joined = {}
    for name, parts in batches.items():
        single = parts[0].ndim == 0
        joined[name] = np.array(parts) if single else np.concatenate(parts)[:records]
    return joined


def _filled_up(array: np.ndarray, batch_size: int) -> np.ndarray:
    missing = batch_size - len(array)
    if not missing:
        return array
    return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
