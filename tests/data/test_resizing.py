"""Images and boxes brought to a size, against what each mode says of pixels and corners."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_dns.data.resizing import check_resize, count_by_scale, new_size, resize, resize_boxes
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import ResizeParameter

DRAWS = np.random.default_rng(0)


def param(text: str) -> ResizeParameter:
    return text_format.Parse(text, ResizeParameter())


def gradient(height: int, width: int, channels: int = 3) -> np.ndarray:
    """An image that gets brighter from left to right and from top to bottom."""
    rows, columns = np.mgrid[0:height, 0:width]
    values = 100 * rows / height + 100 * columns / width
    return np.repeat(values[:, :, None], channels, 2).astype(np.uint8)


@pytest.mark.parametrize("mode", ["LINEAR", "AREA", "NEAREST", "CUBIC", "LANCZOS4"])
@pytest.mark.parametrize("channels", [1, 3])
def test_warp(mode: str, channels: int) -> None:
    settings = param(f"height: 30 width: 20 interp_mode: {mode}")
    found = resize(gradient(60, 80, channels), settings, DRAWS)
    assert found.shape == (30, 20, channels)
    np.testing.assert_allclose(found.astype(int), gradient(30, 20, channels), atol=6)
    boxes = np.array([[-0.1, 0.2, 0.6, 1.2]], np.float32)
    np.testing.assert_allclose(resize_boxes(boxes, (60, 80), settings), [[0, 0.2, 0.6, 1]])


def test_of_several_interpolations_one_is_drawn() -> None:
    settings = param("height: 9 width: 9 interp_mode: NEAREST interp_mode: CUBIC interp_mode: AREA")
    image = np.random.default_rng(1).integers(0, 256, (23, 31, 3), np.uint8)
    draws = np.random.default_rng(2)
    found = {resize(image, settings, draws).tobytes() for _ in range(30)}
    assert len(found) == 3


@pytest.mark.parametrize(
    ("size", "expected"), [((100, 50), (60, 30)), ((50, 100), (40, 80)), ((40, 30), (40, 30))]
)
def test_fit_small_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    settings = param("height: 40 width: 30 resize_mode: FIT_SMALL_SIZE")
    assert new_size(size, settings) == expected
    found = resize(gradient(*size), settings, DRAWS)
    assert found.shape == (*expected, 3)
    boxes = np.array([[0.1, 0.2, 0.6, 0.9]], np.float32)
    np.testing.assert_array_equal(resize_boxes(boxes, size, settings), boxes)


def test_fit_large_size_and_pad() -> None:
    text = "height: 60 width: 40 resize_mode: FIT_LARGE_SIZE_AND_PAD pad_value: 1 pad_value: 2"
    settings = param(text + " pad_value: 3")
    # 100 x 40 gets 40 x 16, with 22 rows above and below.
    found = resize(np.full((40, 100, 3), 9, np.uint8), settings, DRAWS)
    assert found.shape == (60, 40, 3)
    assert (found[22:38] == 9).all()
    assert (found[:22] == [1, 2, 3]).all() and (found[38:] == [1, 2, 3]).all()
    boxes = np.array([[0.25, 0.5, 0.75, 1], [0.1, -0.5, 0.2, 0.5]], np.float32)
    moved = resize_boxes(boxes, (40, 100), settings)
    np.testing.assert_allclose(
        moved, [[0.25, 0.5, 0.75, 38 / 60], [0.1, 22 / 60, 0.2, 0.5]], rtol=1e-6
    )
    # 20 x 60 gets 20 x 60, with 10 columns at each side.
    found = resize(np.full((60, 20, 3), 9, np.uint8), settings, DRAWS)
    assert (found[:, 10:30] == 9).all() and (found[:, :10] == [1, 2, 3]).all()
    np.testing.assert_allclose(
        resize_boxes(boxes[:1], (60, 20), settings), [[0.375, 0.5, 0.625, 1]], rtol=1e-6
    )


def test_other_borders() -> None:
    image = np.array([[10, 20, 30, 40]], np.uint8).T[:, :, None]
    settings = "height: 4 width: 3 resize_mode: FIT_LARGE_SIZE_AND_PAD interp_mode: NEAREST"
    found = resize(image, param(settings + " pad_mode: REPEAT_NEAREST"), DRAWS)
    assert found[:, :, 0].tolist() == [[v, v, v] for v in (10, 20, 30, 40)]
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    settings = settings.replace("width: 3", "width: 8")
    found = resize(image, param(settings + " pad_mode: MIRRORED"), DRAWS)
    assert found[1, :, 0].tolist() == [6, 5, 4, 5, 6, 7, 6, 5]


def test_boxes_counted_by_a_scale_of_their_own() -> None:
    settings = "height: 100 width: 100 height_scale: 50 width_scale: 40"
    fitted = param(f"{settings} resize_mode: FIT_SMALL_SIZE")
    boxes, part = np.array([[0.1, 0.2, 0.6, 0.9]], np.float32), np.array([0, 0, 0.5, 1])
    # 50 x 100 gets 100 x 200, of which the part is 100 x 100.
    found = count_by_scale(boxes, (50, 100), part, fitted)
    np.testing.assert_allclose(found, [[0.25, 0.4, 1.5, 1.8]], rtol=1e-6)
    assert count_by_scale(boxes, (50, 100), part, param(settings)) is boxes
    with pytest.raises(CaffeError, match="height_scale: is 50x40, more than the crop's 40x20"):
        count_by_scale(boxes, (50, 100), np.array([0, 0, 0.1, 0.4]), fitted)


def test_a_size_is_needed() -> None:
    with pytest.raises(CaffeError, match="here: needs a height and a width"):
        check_resize(param("height: 3"), "here")
