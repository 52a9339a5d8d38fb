"""HDF5 files on disks that are full: an error for us, none for the library that writes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.files.hdf5_stream import HDF5Stream

VALUES = np.arange(30_000, dtype=np.float32).reshape(300, 100)


def write(path: Path) -> None:
    """A file in pieces, more than the library keeps in memory."""
    stream = HDF5Stream(path)
    try:
        with h5py.File(stream, "w") as file:
            dataset = file.create_dataset("x", (0, 100), np.float32, maxshape=(None, 100))
            for start in range(0, len(VALUES), 50):
                dataset.resize(start + 50, axis=0)
                dataset[start:] = VALUES[start : start + 50]
        stream.close()
    finally:
        stream.abort()


def test_the_file_is_an_ordinary_one(tmp_path: Path) -> None:
    write(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        assert np.array_equal(file["x"], VALUES)
    assert os.listdir(tmp_path) == ["x.h5"]


class Disk:
    """Lets one operation of `os` fail: the one of this number, or it and all that follow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, forever: bool) -> None:
        self.forever = forever
        self.left = 0
        self.failed = False
        for name in ("pwrite", "ftruncate", "fsync", "replace"):
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))

    def _failing(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            self.left -= 1
            if self.left == 0 or (self.left < 0 and self.forever):
                self.failed = True
                raise OSError(28, "No space left on device")
            return real(*arguments)

        return call


def failures(disk: Disk) -> Iterator[None]:
    """Once for each operation that can fail."""
    number = 0
    disk.failed = True
    while disk.failed:
        number += 1
        disk.left, disk.failed = number, False
        yield
    assert number > 10


@pytest.mark.parametrize("forever", [False, True])
def test_an_error_at_any_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forever: bool
) -> None:
    path = tmp_path / "x.h5"
    disk = Disk(monkeypatch, forever=forever)
    for _ in failures(disk):
        path.write_bytes(b"earlier")
        try:
            write(path)
        except CaffeError as error:
            assert str(error) == f"{path}: cannot be written: No space left on device"
            assert path.read_bytes() == b"earlier"
        else:  # nothing failed, or only what makes the name last
            with h5py.File(path) as file:
                assert np.array_equal(file["x"], VALUES)
        assert os.listdir(tmp_path) == ["x.h5"]


def test_what_could_not_be_written_is_found_by_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = HDF5Stream(tmp_path / "x.h5")
    stream.write(memoryview(b"0123456789"))
    disk = Disk(monkeypatch, forever=True)
    disk.left = 1
    stream.seek(4)
    stream.write(memoryview(b"abcd"))
    stream.seek(6)
    stream.write(memoryview(b"XYZ!!!"))
    stream.seek(2)
    assert stream.read(20) == b"23abXYZ!!!".ljust(20, b"\0")
    with pytest.raises(CaffeError, match="No space left"):
        stream.check()
    with pytest.raises(CaffeError, match="No space left"):
        stream.close()
    stream.abort()
    assert os.listdir(tmp_path) == []
