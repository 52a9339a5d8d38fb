"""MemoryData: arrays from a program, batch after batch."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.layers.memory_data import MemoryData
from tests.layers.harness import make_layer, refused, run

TEXT = "type: 'MemoryData' memory_data_param { batch_size: 2 channels: 3 height: 4 width: 5 }"


def memory_layer(text: str = TEXT) -> MemoryData:
    layer = make_layer(text, tops=2)
    assert isinstance(layer, MemoryData)
    return layer


def test_goes_round_in_batches() -> None:
    layer = memory_layer()
    data = np.random.default_rng(1).standard_normal((6, 3, 4, 5))
    assert layer.reshape([])[1] == (2,)
    layer.set_input(data, np.arange(6))
    for start in (0, 2, 4, 0, 2):
        images, labels = run(layer)
        assert np.array_equal(images.numpy(), data[start : start + 2].astype(np.float32))
        # MemoryDataLayer::Forward_cpu reshapes them.
        assert labels.tolist() == [[[[start]]], [[[start + 1]]]]
    layer.set_input(data[4:], np.array([[[[8.0]]], [[[9.0]]]]))
    assert run(layer)[1].ravel().tolist() == [8, 9]


def test_what_a_program_writes_into_its_arrays_counts() -> None:
    # As in Caffe, which keeps pointers (MemoryDataLayer::Reset).
    layer = memory_layer()
    data = np.ones((2, 3, 4, 5), np.float32)
    labels = np.zeros((2, 1, 1, 1), np.float32)
    layer.set_input(data, labels)
    data[:] = 7
    labels[:] = 3
    top, label = run(layer)
    assert top.unique().tolist() == [7]
    assert label.unique().tolist() == [3]
    top.zero_()  # as a layer in place might
    assert data.min() == 7


def test_warns_of_a_transform(capfd: pytest.CaptureFixture[str]) -> None:
    memory_layer(TEXT + "transform_param { scale: 2 }").set_input(
        np.ones((2, 3, 4, 5)), np.zeros(2)
    )
    assert "MemoryData does not transform array data" in capfd.readouterr().err


def test_wrong_input() -> None:
    layer = memory_layer()
    with pytest.raises(CaffeError, match="has no data yet; call set_input first"):
        layer.forward()
    for data in (np.ones((3, 3, 4, 5)), np.ones((2, 3, 5, 4)), np.ones((0, 3, 4, 5))):
        with pytest.raises(CaffeError, match="needed are a multiple of 2 records"):
            layer.set_input(data, np.zeros(len(data)))
    with pytest.raises(CaffeError, match="3 labels for 2 records"):
        layer.set_input(np.ones((2, 3, 4, 5)), np.zeros(3))


def test_wrong_settings() -> None:
    assert "be positive" in refused(TEXT.replace("height: 4", ""), tops=2)
    assert "takes 2 top" in refused(TEXT)
