"""Rows of HDF5 files as batches (`hdf5_data_layer.cpp`).

Each top is the dataset of its name; the files together form one long list of rows. Writing is not
done here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby

import numpy as np
import torch
from torch import Tensor

from caffe_dns.data.batches import Share
from caffe_dns.data.datum import Image
from caffe_dns.data.sources import Order
from caffe_dns.errors import CaffeError
from caffe_dns.files.finite import check_finite
from caffe_dns.files.hdf5 import find, is_bounded, log_class, open_hdf5, read_arrays


@dataclass
class ArrayBatch:
    """A batch that is finished but for its device."""

    arrays: list[Tensor]

    def tops(self, device: torch.device) -> Sequence[Tensor]:
        """The arrays on `device`."""
        return [array.to(device, non_blocking=True) for array in self.arrays]


@dataclass
class HDF5Files:
    """Files with the same datasets: their numbers of rows, and the shapes of one row of each."""

    paths: list[str]
    names: list[str]
    rows: list[int]
    row_shapes: list[tuple[int, ...]]


def inspect_files(paths: list[str], names: list[str]) -> HDF5Files:
    """Look at the datasets `names` in all files without reading them.

    Raises CaffeError, with the file and the dataset, for what is missing or does not fit together.
    """
    rows: list[int] = []
    row_shapes: list[tuple[int, ...]] = []
    #: Of each file, which may be listed thousands of times.
    known: dict[str, list[tuple[int, ...]]] = {}
    for path in paths:
        if path not in known:
            known[path] = _dataset_shapes(path, names)
        shapes = known[path]
        if not shapes[0][0]:
            raise CaffeError(f"dataset '{names[0]}' has no rows", file=path)
        if len({shape[0] for shape in shapes}) != 1:
            pairs = zip(names, shapes, strict=True)
            numbers = ", ".join(f"{shape[0]} in '{name}'" for name, shape in pairs)
            raise CaffeError(f"needs the same number of rows in all: {numbers}", file=path)
        found = [shape[1:] for shape in shapes]
        if row_shapes and found != row_shapes:
            raise CaffeError(f"has rows of {found}, the first file of {row_shapes}", file=path)
        rows.append(shapes[0][0])
        row_shapes = found
    return HDF5Files(paths, names, rows, row_shapes)


def _dataset_shapes(path: str, names: list[str]) -> list[tuple[int, ...]]:
    import h5py  # here, because importing it takes long and most runs do not need it

    with open_hdf5(path) as file:
        shapes = []
        for name in names:
            dataset = find(file, name)
            if not isinstance(dataset, h5py.Dataset):
                known = ", ".join(sorted(file)) or "nothing"
                raise CaffeError(f"has no dataset '{name}'; it holds {known}")
            if dataset.dtype.kind not in "fiu" or not dataset.shape:
                raise CaffeError(f"dataset '{name}' is no array of numbers")
            log_class(dataset)
            shapes.append(tuple(dataset.shape))
        return shapes


class HDF5Batches:
    """Batches of rows, across the ends of files. With a seed, files and rows are shuffled."""

    def __init__(
        self,
        files: HDF5Files,
        share: Share,
        batch_size: int,
        *,
        seed: int | None,
        stream: str,
        pin: bool,
    ) -> None:
        self._files = files
        self._numbers = share.batches(batch_size)
        self._batch_size = batch_size
        self._pin = pin
        self._total = sum(files.rows)
        self._file_order = Order(len(files.paths), seed, f"{stream}/files")
        self._row_orders = [
            Order(rows, seed, f"{stream}/rows/{index}") for index, rows in enumerate(files.rows)
        ]
        self._round = lru_cache(maxsize=2)(self._arrange_round)
        self._load = lru_cache(maxsize=1)(self._read_file)

    def read(self) -> ArrayBatch:
        """The next batch."""
        arrays = [
            torch.empty((self._batch_size, *shape), pin_memory=self._pin)
            for shape in self._files.row_shapes
        ]
        places = [self._place(number) for number in next(self._numbers).tolist()]
        start = 0
        for file, group in groupby(places, key=lambda place: place[0]):
            rows = [row for _, row in group]
            some = slice(start, start + len(rows))
            self._fill([array.numpy()[some] for array in arrays], file, rows)
            start += len(rows)
        return ArrayBatch(arrays)

    def values(self, record: int, name: str) -> Image:
        """What the dataset `name` has in the row of a record, by its number."""
        file, row = self._place(record)
        with open_hdf5(self._files.paths[file]) as opened:
            return np.array(find(opened, name)[row])

    def explain(self, error: CaffeError, record: int) -> CaffeError:
        """An error about a record, which says where that is."""
        file, row = self._place(record)
        error.message = f"row {row}: {error.message}"
        return error.locate(file=self._files.paths[file])

    def close(self) -> None:
        self._load.cache_clear()

    def _place(self, number: int) -> tuple[int, int]:
        """The file and the row where row `number` of all rounds lies."""
        turn, index = divmod(number, self._total)
        order, ends = self._round(turn)
        which = bisect_right(ends, index)
        file = order[which]
        rows = self._files.rows[file]
        row = index - (ends[which] - rows)
        return file, self._row_orders[file].index(turn * rows + row)

    def _arrange_round(self, turn: int) -> tuple[list[int], list[int]]:
        """The files in this round's order, and how many rows there are up to the end of each."""
        count = len(self._files.paths)
        order = [self._file_order.index(turn * count + index) for index in range(count)]
        return order, list(accumulate(self._files.rows[file] for file in order))

    def _fill(self, targets: list[Image], file: int, rows: list[int]) -> None:
        """Put these rows of a file into `targets`, one for each dataset."""
        arrays = self._load(file)
        if arrays is not None:
            for target, array in zip(targets, arrays, strict=True):
                target[:] = array[rows]
            return
        with open_hdf5(self._files.paths[file]) as opened:
            for target, name in zip(targets, self._files.names, strict=True):
                dataset = find(opened, name)
                for place, row in enumerate(rows):
                    target[place] = dataset[row]
                check_finite(target, f"dataset '{name}'")

    def _read_file(self, file: int) -> list[Image] | None:
        """All rows of a file, or None where it claims more than can well lie in it."""
        with open_hdf5(self._files.paths[file]) as opened:
            datasets = [find(opened, name) for name in self._files.names]
            if not is_bounded(*datasets):
                return None
            return read_arrays(datasets)
