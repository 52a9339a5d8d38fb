"""HDF5Data beyond the golden case: any number of tops, shuffling, seeking, wrong files."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import h5py
import numpy as np
import pytest

from caffe_dns import log
from caffe_dns.data import hdf5_rows
from caffe_dns.layers import Context
from tests.layers.data_harness import data_layer, read, refused

ROWS = [4, 1, 3]


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A definition, still open, of three files whose rows are numbered from 0 to 7."""
    monkeypatch.chdir(tmp_path)  # whose name may have a blank, at which a path in a list ends
    first = 0
    for index, rows in enumerate(ROWS):
        numbers = np.arange(first, first + rows)
        with h5py.File(tmp_path / f"{index}.h5", "w") as file:
            file["data"] = np.broadcast_to(numbers[:, None, None], (rows, 2, 3)).astype("f8")
            file["label"] = numbers
            file["third"] = numbers[:, None].astype("f4")
        first += rows
    (tmp_path / "list").write_text("0.h5 1.h5\n\n  2.h5")
    return f"type: 'HDF5Data' hdf5_data_param {{ source: '{tmp_path}/list' "


def test_goes_round_across_the_ends_of_files(listed: str) -> None:
    with data_layer(listed + "batch_size: 3 }", tops=3) as layer:
        assert layer.reshape([]) == [(3, 2, 3), (3,), (3, 1)]
        for index, (data, label, third) in enumerate(read(layer, 6)):
            assert label.tolist() == [(3 * index + n) % 8 for n in range(3)]
            assert data.shape == (3, 2, 3)
            assert data.dtype == label.dtype == np.float32
            assert np.array_equal(data[:, 1, 2], label)
            assert np.array_equal(third[:, 0], label)
        assert layer.position() == 18
        layer.seek(29)
        assert read(layer, 1)[0][1].tolist() == [5, 6, 7]


def test_shuffles_files_and_rows(listed: str) -> None:
    with data_layer(listed + "batch_size: 8 shuffle: true }", context=Context(seed=4)) as layer:
        rounds = [batch[1].astype(int).tolist() for batch in read(layer, 4)]
    files = [{0, 1, 2, 3}, {4}, {5, 6, 7}]
    for rows in rounds:
        assert sorted(rows) == list(range(8))
        for members in files:  # a file's rows stay together
            places = [rows.index(member) for member in members]
            assert max(places) - min(places) == len(members) - 1
    assert len({tuple(rows) for rows in rounds}) > 1
    with data_layer(listed + "batch_size: 8 shuffle: true }", context=Context(seed=4)) as layer:
        layer.seek(16)
        assert read(layer, 1)[0][1].astype(int).tolist() == rounds[2]


def test_ranks_share_the_rows(listed: str) -> None:
    context = Context(rank=1, world_size=3)
    with data_layer(listed + "batch_size: 3 }", train=True, context=context) as layer:
        assert [batch[1].tolist() for batch in read(layer, 2)] == [[1, 4, 7], [2, 5, 0]]


def test_wrong_settings(listed: str, tmp_path: Path) -> None:
    assert "hdf5_data_param.batch_size" in refused(listed + "}")
    assert "does not transform data" in refused(listed + "batch_size: 1 } transform_param {}")
    assert "must name a list" in refused("type: 'HDF5Data' hdf5_data_param { batch_size: 1 }")
    (tmp_path / "list").write_text("\n")
    assert "lists no files" in refused(listed + "batch_size: 1 }")


def test_wrong_files(listed: str, tmp_path: Path) -> None:
    text = listed + "batch_size: 1 }"

    def error_after(name: str, values: np.ndarray | None) -> str:
        with h5py.File(tmp_path / "1.h5", "a") as file:
            if name in file:
                del file[name]
            if values is not None:
                file[name] = values
        return refused(text)

    assert "1.h5: layer 'layer': has no dataset 'label'; it holds data, third" in error_after(
        "label", None
    )
    assert "needs the same number of rows in all: 1 in 'data', 2 in 'label'" in error_after(
        "label", np.zeros(2)
    )
    assert "'label' is no array of numbers" in error_after("label", np.array([b"x"]))
    assert "'label' is no array of numbers" in error_after("label", np.array(1.0))
    assert "has rows of [(2, 3), (2,)]" in error_after("label", np.zeros((1, 2)))
    assert "1.h5: layer 'layer': dataset 'data' has no rows" in error_after(
        "data", np.zeros((0, 2))
    )
    (tmp_path / "1.h5").write_text("no HDF5")
    assert "1.h5: layer 'layer': cannot be read as HDF5" in refused(text)


def test_a_file_that_is_listed_often_is_looked_at_once(
    listed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 KB of one name took 15 seconds."""
    opened: list[str] = []
    open_hdf5 = hdf5_rows.open_hdf5

    def counted(path: str) -> AbstractContextManager[h5py.File]:
        opened.append(path)
        return open_hdf5(path)

    monkeypatch.setattr(hdf5_rows, "open_hdf5", counted)
    (tmp_path / "list").write_text("0.h5 1.h5 " * 50)
    with data_layer(listed + "batch_size: 3 }", tops=3) as layer:
        assert opened == ["0.h5", "1.h5"]
        assert read(layer, 2)[1][1].tolist() == [(3 + n) % (ROWS[0] + ROWS[1]) for n in range(3)]


def test_says_once_which_classes_the_values_are_of(
    listed: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LOG_FIRST_N of util/hdf5.cpp, as Caffe 1.0 logs it once it has counted the files."""
    monkeypatch.setattr(log, "said_once", set())
    for _ in range(2):
        with data_layer(listed + "batch_size: 3 }", tops=3):
            pass
    said = [line.partition("] ")[2] for line in capfd.readouterr().err.splitlines()]
    assert [line for line in said if line.startswith(("Number", "Datatype"))] == [
        "Number of HDF5 files: 3",
        "Datatype class: H5T_FLOAT",
        "Datatype class: H5T_INTEGER",
        "Number of HDF5 files: 3",
    ]
