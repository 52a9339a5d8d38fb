"""HDF5Output: writes its two bottoms to a file, as `data` and `label` (`hdf5_output_layer.cpp`)."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from caffe_dns import log
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.files.hdf5_stream import HDF5Stream
from caffe_dns.layers.base import Layer, Shape, layer_types

if TYPE_CHECKING:
    import h5py

_DATASETS = ("data", "label")


@layer_types.register("HDF5Output")
class HDF5Output(Layer):
    """The rows of all forward passes, one batch after the other.

    Caffe ends with an error at the second forward pass, because the datasets are there already. The
    file gets its name when the layer is closed; until then a hidden one beside it grows. Where
    several ranks train, the rows are those of rank 0.
    """

    bottoms = (2, 2)
    tops = (0, 0)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        path = Path(on_disk(self.param.hdf5_output_param.file_name))
        if not self.param.hdf5_output_param.file_name:
            raise self.error("must name a file", "hdf5_output_param.file_name")
        if not os.path.isdir(path.absolute().parent):
            raise self.error(
                f"there is no folder {path.parent} for {path}", "hdf5_output_param.file_name"
            )
        self._path = path
        self._file: _RowFile | None = None

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        for shape in bottom_shapes:
            if len(shape) > 4:
                raise self.error(f"takes blobs of at most 4 axes, not of shape {shape}")
        rows = [shape[0] if shape else 1 for shape in bottom_shapes]
        if rows[0] != rows[1]:
            raise self.error(f"the bottoms have {rows[0]} and {rows[1]} rows")
        return []

    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        if self.context.rank:
            return []
        if self._file is None:
            self._file = _RowFile(self._path)
            weakref.finalize(self, self._file.close)
        log.info(f"Saving HDF5 file {self._path}")
        self._file.append([_with_four_axes(bottom) for bottom in bottoms])
        log.info(f"Successfully saved {len(bottoms[0])} rows")
        return []

    def close(self) -> None:
        """Finish the file. Rows of later forward passes start it anew."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _RowFile:
    """An HDF5 file that is being written. After an error it is thrown away."""

    def __init__(self, path: Path) -> None:
        import h5py  # here, because importing it takes long and most runs do not need it

        self._path = path
        self._stream = HDF5Stream(path)
        self._file: h5py.File | None = h5py.File(self._stream, "w")

    def append(self, arrays: Sequence[np.ndarray]) -> None:
        """Add rows to both datasets."""
        try:
            for name, array in zip(_DATASETS, arrays, strict=True):
                self._append(name, array)
            self._stream.check()
        except (OSError, ValueError, TypeError) as error:
            self._give_up()
            reason = f"cannot be written: {first_line(error)}"
            raise CaffeError(reason, file=str(self._path)) from None
        except CaffeError:
            self._give_up()
            raise

    def close(self) -> None:
        """Give the file its name. Closing twice does nothing."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
            self._stream.close()
        finally:
            self._stream.abort()

    def _append(self, name: str, array: np.ndarray) -> None:
        if self._file is None:
            raise ValueError("is closed")
        if name not in self._file:
            limits = (None, *array.shape[1:])
            self._file.create_dataset(name, data=array, maxshape=limits)
        else:
            dataset = self._file[name]
            start = len(dataset)
            dataset.resize(start + len(array), axis=0)
            dataset[start:] = array

    def _give_up(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        self._stream.abort()


def _with_four_axes(bottom: Tensor) -> np.ndarray:
    """The values, their shape filled up with ones at the end as `Blob::LegacyShape` does."""
    shape = tuple(bottom.shape)
    return bottom.detach().cpu().numpy().reshape(shape + (1,) * (4 - len(shape)))
