"""HDF5 files that are damaged, claim too much, or lead elsewhere."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from caffe_dns.data.batches import Share
from caffe_dns.data.hdf5_rows import HDF5Batches, inspect_files
from caffe_dns.errors import CaffeError
from caffe_dns.files.hdf5 import find, open_hdf5, read_arrays
from caffe_dns.solver.state_file import read_state
from caffe_dns.weights.transfer import read_layers

ROWS = np.arange(24, dtype=np.float32).reshape(12, 2)


def make(path: Path, fill: Callable[[h5py.File], Any]) -> str:
    with h5py.File(path, "w") as file:
        fill(file)
    return str(path)


def read(path: str) -> np.ndarray:
    with open_hdf5(path) as root:
        return read_arrays([find(root, "data")])[0]


def test_reads_an_array(tmp_path: Path) -> None:
    path = make(tmp_path / "a.h5", lambda file: file.update({"data": ROWS}))
    assert np.array_equal(read(path), ROWS)


def link_elsewhere(file: h5py.File) -> None:
    file["data"] = h5py.ExternalLink("other.h5", "/data")


def link_by_a_detour(file: h5py.File) -> None:
    file["there"] = h5py.ExternalLink("other.h5", "/")
    file["data"] = h5py.SoftLink("/there/data")


def store_elsewhere(file: h5py.File) -> None:
    file.create_dataset("data", (3, 2), "f4", external=[("values", 0, 24)])


def assemble_elsewhere(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((12, 2), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "data", (12, 2))
    file.create_virtual_dataset("data", layout)


def claim_much(file: h5py.File) -> None:
    file.create_dataset("data", (200_000_000, 2), "f4", chunks=(100, 2))


def claim_bytes(file: h5py.File) -> None:
    """Five times as many as float32, beside the bytes themselves."""
    file.create_dataset("data", (100_000_000,), "u1", chunks=(100,))


def refer_often_to_a_large_text(file: h5py.File) -> None:
    file.create_dataset("data", data=["x" * 1000] * 10, dtype=h5py.string_dtype())


def claim_pieces(file: h5py.File) -> None:
    file.create_dataset("data", (10**9,), "u1", chunks=(10**9,), compression="gzip")


def circle(file: h5py.File) -> None:
    file["data"] = h5py.SoftLink("/data")


def spoil(file: h5py.File) -> None:
    file["data"] = np.where(ROWS == 7, np.nan, ROWS)


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (link_elsewhere, "a link into another file"),
        (link_by_a_detour, "leads into another file"),
        (store_elsewhere, "values in other files"),
        (assemble_elsewhere, "values in other files"),
        (claim_much, r"claims more than fits here: dataset '/data' of \(200000000, 2\)"),
        (claim_bytes, "claims more than fits here"),
        (refer_often_to_a_large_text, "'/data' is no array of numbers"),
        (claim_pieces, "pieces of more than"),
        (circle, "cannot be read as HDF5"),
        (spoil, r"holds nan at \[3, 1\]"),
        (lambda file: file.update({"data": [b"abc"]}), "'/data' is no array of numbers"),
    ],
)
def test_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill: Callable[[h5py.File], None], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "other.h5", lambda file: file.update({"data": ROWS}))
    (tmp_path / "values").write_bytes(bytes(24))
    path = make(tmp_path / "a.h5", fill)
    with pytest.raises(CaffeError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_rows_are_read_in_pieces_where_a_file_claims_much(tmp_path: Path) -> None:
    """A few KB can claim any number of rows; a batch of them is all that is read."""

    def fill(file: h5py.File) -> None:
        dataset = file.create_dataset("data", (150_000_000, 2), "f4", chunks=(100, 2))
        dataset[:12] = ROWS

    files = inspect_files([make(tmp_path / "a.h5", fill)], ["data"])
    batches = HDF5Batches(files, Share(), 8, seed=None, stream="x", pin=False)
    assert np.array_equal(batches.read().arrays[0].numpy(), ROWS[:8])
    rest = batches.read().arrays[0].numpy()
    assert np.array_equal(rest[:4], ROWS[8:])
    assert not rest[4:].any()


def test_a_pipe_is_no_hdf5_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CaffeError, match="pipe"):
        inspect_files([str(tmp_path / "pipe")], ["data"])


def test_what_is_read_together_is_bounded_together(tmp_path: Path) -> None:
    """Each of a layer's blobs would fit; they need not even lie in the file twice."""

    def fill(file: h5py.File) -> None:
        group = file.create_group("data/conv1")
        group.create_dataset("0", (20_000_000,), "f4", chunks=(100,))
        for index in range(1, 20):
            group[str(index)] = group["0"]

    with pytest.raises(CaffeError, match="claims more than fits here"):
        list(read_layers(make(tmp_path / "a.caffemodel.h5", fill)))


def test_a_states_model_is_one_text(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["iter"] = file["current_step"] = 1
        file.create_dataset("learned_net", data=["a", "b"], dtype=h5py.string_dtype())
        file.create_group("history")

    with pytest.raises(CaffeError, match="'learned_net' is no single text"):
        read_state(make(tmp_path / "a.solverstate.h5", fill))


def model(file: h5py.File) -> None:
    for index in range(4):
        file[f"data/conv{index}/0"] = ROWS
        file[f"data/conv{index}/1"] = ROWS[0]


def state(file: h5py.File) -> None:
    file["iter"] = file["current_step"] = np.array([3], np.int32)
    file["learned_net"] = np.bytes_(b"x.caffemodel")
    for index in range(6):
        file[f"history/{index}"] = ROWS


@pytest.mark.parametrize(
    ("fill", "use"),
    [
        (model, lambda path: [layer.read() for layer in read_layers(path)]),
        (state, read_state),
        (lambda file: file.update({"data": ROWS}), lambda path: inspect_files([path], ["data"])),
    ],
)
def test_damaged_files_are_read_or_refused(
    tmp_path: Path, fill: Callable[[h5py.File], None], use: Callable[[str], Any]
) -> None:
    good = Path(make(tmp_path / "good.h5", fill)).read_bytes()
    draw = random.Random(4)
    use(str(tmp_path / "good.h5"))
    refused = 0
    for _ in range(150):
        spoiled = bytearray(good)
        for _ in range(draw.choice([1, 3, 20])):
            at = draw.randrange(8, min(len(good), 6000))
            width = draw.choice([1, 2, 8, 40])
            spoiled[at : at + width] = draw.choice([bytes(width), b"\xff" * width])
        (tmp_path / "bad.h5").write_bytes(spoiled[: draw.choice([None, draw.randrange(len(good))])])
        try:
            use(str(tmp_path / "bad.h5"))
        except CaffeError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 20


def test_what_is_missing_is_not_said_in_words_about_our_code(tmp_path: Path) -> None:
    path = make(tmp_path / "a.h5", lambda file: file.update({"iter": 0, "current_step": 0}))
    with pytest.raises(CaffeError, match="is not a solver state in HDF5: something in it is miss"):
        read_state(path)


@pytest.mark.parametrize(("field", "value"), [("iter", -1), ("current_step", -7)])
def test_states_of_negative_numbers_are_refused(tmp_path: Path, field: str, value: int) -> None:
    def fill(file: h5py.File) -> None:
        state(file)
        file[field][0] = value

    with pytest.raises(CaffeError, match=f"{field}: is {value}, below 0"):
        read_state(make(tmp_path / "a.solverstate.h5", fill))


def test_a_disk_that_cannot_be_read_is_told_in_the_words_of_the_system(tmp_path: Path) -> None:
    path = make(tmp_path / "a.h5", lambda file: file.create_dataset("data", data=ROWS))
    said = (
        "Unable to get group info (file read failed: time = Mon Nov 30 02:52:16 2026\n, filename = "
        "'a.h5', file descriptor = 3, errno = 5, error message = 'Input/output error', buf = 0x7f, "
        "total read size = 512, bytes this sub-read = 512, offset = 96)"
    )
    with pytest.raises(CaffeError) as caught, open_hdf5(path):
        raise RuntimeError(said)
    assert str(caught.value) == f"{path}: cannot be read as HDF5: Input/output error"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a one is no fault of a file, whose snapshot would be passed over."""
    path = make(tmp_path / "a.h5", lambda file: file.create_dataset("data", data=ROWS))
    open_file = h5py.File

    def refuse(name: str, mode: str, locking: bool = True) -> h5py.File:
        if locking:
            raise OSError(errno.ENOLCK, "Unable to synchronously open file (unable to lock file)")
        return open_file(name, mode, locking=locking)

    monkeypatch.setattr(h5py, "File", refuse)
    with open_hdf5(path) as root:
        np.testing.assert_array_equal(root["data"], ROWS)
