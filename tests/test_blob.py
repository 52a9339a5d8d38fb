"""Blobs: one memory, seen as tensors and as arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from caffe_dns.blob import Blob, BlobVec, ParamBlob
from caffe_dns.errors import CaffeError


def test_data_and_diff_are_written_through() -> None:
    blob = Blob((2, 3), diff_value=2)
    blob.data[1] = [4, 5, 6]
    assert blob.data_tensor().tolist() == [[0, 0, 0], [4, 5, 6]]
    assert (blob.diff == 2).all()
    blob.diff[...] = 7
    assert (blob.diff_tensor() == 7).all()
    assert blob.data.dtype == blob.diff.dtype == np.float32


def test_extents() -> None:
    blob = Blob((2, 3))
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == (2, 3, 1, 1, 6)
    assert Blob().count == 1 and Blob((4, 0)).count == 0
    with pytest.raises(CaffeError, match="for blobs of up to 4 axes"):
        Blob((1, 2, 3, 4, 5)).num  # noqa: B018


def test_reshape() -> None:
    blob = Blob((2, 3))
    data = blob.data
    data[...] = [[1, 2, 3], [4, 5, 6]]
    blob.reshape(3, 2)
    assert blob.data.tolist() == [[1, 2], [3, 4], [5, 6]] and np.shares_memory(blob.data, data)
    assert blob.diff.shape == (3, 2)
    blob.reshape(2, 2, 2)
    assert not blob.data.any() and blob.diff.shape == blob.shape == (2, 2, 2)
    blob.reshape()
    assert blob.data.shape == ()
    with pytest.raises(CaffeError, match="an extent is negative"):
        blob.reshape(-1, 2)


def test_taking_values() -> None:
    blob = Blob((2,))
    data = blob.data
    blob.take(torch.tensor([3.0, 4.0]))
    assert data.tolist() == [3, 4]
    blob.take(torch.ones(3, dtype=torch.float64))
    assert blob.data.dtype == np.float64 and blob.shape == (3,)
    blob.move(torch.float32, torch.device("cpu"))
    assert blob.data.dtype == np.float32 and blob.data.tolist() == [1, 1, 1]
    other = Blob()
    other.share_data(blob)
    blob.data[0] = 9
    assert other.data.tolist() == [9, 1, 1]


def test_parameters() -> None:
    layer = nn.Linear(3, 2)
    blob = ParamBlob(lambda: layer.weight, lambda: layer.weight)
    diff = blob.diff
    layer(torch.ones(1, 3)).sum().backward()
    assert (diff == 1).all()
    layer.weight.grad = None  # as after an update
    blob.diff[...] = 5
    assert (diff == 5).all() and layer.weight.grad is not None
    blob.data[...] = 2
    assert (layer.weight == 2).all()
    layer.weight = nn.Parameter(torch.zeros(2, 3))  # as when nets share weights
    assert not blob.data.any()
    with pytest.raises(CaffeError, match="keep their shape"):
        blob.reshape(6)


def test_lists_of_blobs() -> None:
    blobs = BlobVec()
    blobs.add_blob(2, 3)
    blobs.add_blob()
    assert [blob.shape for blob in blobs] == [(2, 3), ()]
