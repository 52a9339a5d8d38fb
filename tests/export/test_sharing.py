"""Models whose layers share a few values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from caffe_dns.export.sharing import share_values
from tests.export.build import CONVOLUTIONAL, small_model
from tests.oracle import assert_same_bits


def distinct(arrays: list[np.ndarray]) -> int:
    flat = np.concatenate([array.ravel() for array in arrays])
    return len(np.unique(flat[flat != 0]))


@pytest.mark.parametrize("bits", [2, 4])
def test_each_layer_has_its_values(bits: int, tmp_path: Path) -> None:
    model, _ = small_model(CONVOLUTIONAL, tmp_path)
    small = share_values(model, bits)
    with_matrix = 0
    for arrays, given in zip(small.blobs, model.blobs, strict=True):
        if not any(array.ndim > 1 for array in given):
            assert all(array is before for array, before in zip(arrays, given, strict=True))
            continue
        with_matrix += 1
        assert 1 < distinct(arrays) <= 2**bits
        for array, before in zip(arrays, given, strict=True):
            assert array.shape == before.shape
            assert array.dtype == np.float32
            assert (array[before == 0] == 0).all()
            assert (array == array.astype(np.float16)).all()
    assert with_matrix > 1
    again = share_values(small, bits)
    assert_same_bits(again.blobs, small.blobs)


def test_what_cannot_be_shared_stays(tmp_path: Path) -> None:
    model, _ = small_model(CONVOLUTIONAL, tmp_path)
    zeros = [[np.zeros_like(array) for array in arrays] for arrays in model.blobs]
    infinite = [[np.full_like(array, np.inf) for array in arrays] for arrays in model.blobs]
    tiny = [[np.full_like(array, -1e-12) for array in arrays] for arrays in model.blobs]
    for blobs in (zeros, infinite):
        assert share_values(replace(model, blobs=blobs), 2).blobs == blobs
    for layer in share_values(replace(model, blobs=tiny), 2).blobs:
        for matrix in (array for array in layer if array.ndim > 1):
            assert matrix.tobytes() == np.zeros_like(matrix).tobytes()
