"""HDF5Output: the rows of all forward passes, in a file that appears when it is finished."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.layers.hdf5_output import HDF5Output
from tests.layers.harness import make_layer, refused


def output_layer(path: Path, *shapes: tuple[int, ...]) -> HDF5Output:
    layer = make_layer(
        f"type: 'HDF5Output' hdf5_output_param {{ file_name: '{path}' }}", *shapes, tops=0
    )
    assert isinstance(layer, HDF5Output)
    return layer


def test_writes_data_and_label_with_four_axes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.h5"
    data, label = torch.randn(7, 2, 3), torch.arange(7.0)
    layer = output_layer(path, (4, 2, 3), (4,))
    for rows in (slice(0, 4), slice(4, 7)):
        assert list(layer(data[rows].requires_grad_(), label[rows])) == []
    assert not path.exists()
    layer.close()
    layer.close()
    with h5py.File(path) as file:
        assert set(file) == {"data", "label"}
        assert np.array_equal(file["data"], data.numpy()[..., None])
        assert np.array_equal(file["label"], label.numpy()[:, None, None, None])
        assert file["data"].dtype == np.float32
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.h5"]
    messages = [line.split("] ", 1)[1] for line in capfd.readouterr().err.splitlines()]
    assert messages[:2] == [f"Saving HDF5 file {path}", "Successfully saved 4 rows"]


def test_is_finished_when_the_layer_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    layer = output_layer(path, (2, 3), (2,))
    layer(torch.ones(2, 3), torch.ones(2))
    del layer
    with h5py.File(path) as file:
        assert file["data"].shape == (2, 3, 1, 1)


def test_only_rank_0_writes(tmp_path: Path) -> None:
    layer = output_layer(tmp_path / "out.h5", (2, 3), (2,))
    layer.context.rank = 1
    assert list(layer(torch.ones(2, 3), torch.ones(2))) == []
    layer.close()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_without_rows(tmp_path: Path) -> None:
    output_layer(tmp_path / "out.h5", (2, 3), (2,)).close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.h5"
    layer = output_layer(path, (2, 3), (2,))
    layer(torch.ones(2, 3), torch.ones(2))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CaffeError, match=r"out\.h5: cannot be written: No space left on device"):
        for _ in range(1000):
            layer(torch.ones(2, 3), torch.ones(2))
    layer.close()
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings(tmp_path: Path) -> None:
    text = f"type: 'HDF5Output' hdf5_output_param {{ file_name: '{tmp_path}/x' }}"
    assert "bottoms have 2 and 3 rows" in refused(text, (2, 3), (3,), tops=0)
    assert "at most 4 axes" in refused(text, (1, 1, 1, 1, 1), (1,), tops=0)
    assert "takes 2 bottom" in refused(text, (2, 3), tops=0)
    assert "must name a file" in refused("type: 'HDF5Output'", (2, 3), (2,), tops=0)
    missing = text.replace("/x", "/none/x")
    assert "there is no folder" in refused(missing, (2, 3), (2,), tops=0)
