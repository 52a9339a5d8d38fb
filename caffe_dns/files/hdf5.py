"""Reads HDF5 files that may be damaged or malicious.

Whatever h5py raises becomes one CaffeError. Nothing outside the file is read: HDF5 has links to
other files, and datasets whose values are a part of any file on the machine. No more memory is
allocated than the file can plausibly need.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_dns import log
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.files.finite import check_finite
from caffe_dns.files.kinds import HEAD, other_kind
from caffe_dns.files.reading import FREE, check_file, may_take

if TYPE_CHECKING:
    import h5py

#: Of datasets that are too large, how many are named.
_MOST_NAMED = 3
#: What h5py raises for files that are not as they should be.
_H5PY_ERRORS = (
    AttributeError,
    KeyError,
    IndexError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)
#: What the system has said, in the middle of what HDF5 says.
_OF_SYSTEM = re.compile("error message = '([^']+)'")


@contextmanager
def open_hdf5(path: str, what: str = "cannot be read as HDF5") -> Iterator[h5py.File]:
    """The file, in a block that only reads it. Raises CaffeError, which says `what` is wrong."""
    try:
        check_file(path)
        with _opened(on_disk(path)) as root:
            yield root
    except CaffeError as error:
        raise error.locate(file=path) from None
    except _H5PY_ERRORS as error:
        raise CaffeError(f"{what}: {_reason(error, path)}", file=path) from None


def _opened(path: str) -> h5py.File:
    """The file, locked against who would write it, but where its file system has no locks."""
    import h5py  # here, because importing it takes long and most runs do not need it

    try:
        return h5py.File(path, "r")
    except OSError as error:  # of some servers' file systems, which is no fault of the file's
        if error.errno != errno.ENOLCK:
            raise
    return h5py.File(path, "r", locking=False)


def _reason(error: Exception, path: str) -> str:
    """What is wrong, in the words of the system or of HDF5."""
    if quoted := _OF_SYSTEM.search(str(error)):
        return quoted[1]
    if isinstance(error, OSError) and error.errno is None:  # not HDF5
        with suppress(OSError), open(on_disk(path), "rb") as file:
            if kind := other_kind(file.read(HEAD)):
                return kind
    if isinstance(error, AttributeError | TypeError):  # in Python's words, which are about our code
        return "something in it is missing, or of another kind than it should be"
    return getattr(error, "strerror", None) or first_line(error)


def find(group: h5py.Group, name: str | bytes) -> Any:
    """The group or dataset of this name, or None. Raises CaffeError where it is in another file."""
    import h5py

    # Not group.get(name, getlink=True), which cannot take names that are not UTF-8.
    raw = name if isinstance(name, bytes) else name.encode()
    shown = raw.decode(errors="backslashreplace")
    if _is_external(group, raw):
        raise CaffeError(f"'{shown}' is a link into another file; none is read")
    item = group.get(name)
    if item is None:
        return None
    if item.file.filename != group.file.filename:
        raise CaffeError(f"'{shown}' leads into another file, {item.file.filename}; none is read")
    if isinstance(item, h5py.Dataset):
        if item.external or item.is_virtual:
            raise CaffeError(f"dataset '{shown}' has its values in other files; none is read")
        if _piece(item) > FREE:
            raise CaffeError(f"dataset '{shown}' comes in pieces of more than {FREE >> 20} MiB")
    return item


def _is_external(group: h5py.Group, name: bytes) -> bool:
    import h5py

    try:
        return bool(group.id.links.get_info(name).type == h5py.h5l.TYPE_EXTERNAL)
    except (KeyError, RuntimeError):  # there is none
        return False


def is_bounded(*datasets: h5py.Dataset) -> bool:
    """Whether so many values may well lie in their file, so that all can be read at once."""
    memory = sum(map(_memory, datasets))
    return not datasets or may_take(memory, os.path.getsize(datasets[0].file.filename))


def _memory(dataset: h5py.Dataset) -> int:
    """The bytes that reading all values takes: as they are, and as float32 if they are no such."""
    size = np.dtype(np.float32).itemsize
    if dataset.dtype != np.float32:
        size += dataset.dtype.itemsize
    return int(np.prod(dataset.shape, dtype=object)) * size + _piece(dataset)


def _piece(dataset: h5py.Dataset) -> int:
    """The bytes of a piece in which the values come, if they do."""
    return int(np.prod(dataset.chunks or (0,), dtype=object)) * dataset.dtype.itemsize


def log_class(dataset: h5py.Dataset) -> None:
    """Caffe's line about the first dataset of a kind (util/hdf5.cpp)."""
    kind = "FLOAT" if dataset.dtype.kind == "f" else "INTEGER"
    log.info_once(f"Datatype class: H5T_{kind}")


def read_arrays(
    datasets: Sequence[h5py.Dataset],
) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """All values of some datasets, as finite float32. Raises CaffeError, or what h5py raises."""
    for dataset in datasets:
        if dataset.dtype.kind not in "biuf":
            raise CaffeError(f"dataset '{dataset.name}' is no array of numbers")
        log_class(dataset)
    if not is_bounded(*datasets):
        claimed = ", ".join(f"'{each.name}' of {each.shape}" for each in datasets[:_MOST_NAMED])
        raise CaffeError(f"claims more than fits here: dataset {claimed}")
    arrays = [np.asarray(dataset[()], np.float32) for dataset in datasets]
    for array, dataset in zip(arrays, datasets, strict=True):
        check_finite(array, f"dataset '{dataset.name}'")
    return arrays
