"""Parts of images, taken however their planes lie."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_dns.data.crops import copy_planes
from caffe_dns.data.datum import Image


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("interleaved", [False, True])
def test_planes_are_copied_however_they_lie(channels: int, dtype: type, interleaved: bool) -> None:
    values: Image = np.random.default_rng(0).integers(0, 256, (channels, 9, 11)).astype(dtype)
    image = values
    if interleaved:  # as an image that was decoded
        image = np.ascontiguousarray(values.transpose(1, 2, 0)).transpose(2, 0, 1)
    batch: Image = np.zeros((3, channels, 5, 6), dtype)
    copy_planes(image[:, 2:7, 3:9], batch[1])
    np.testing.assert_array_equal(batch[1], values[:, 2:7, 3:9])
    assert not batch[0].any()
    assert not batch[2].any()
