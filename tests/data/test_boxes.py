"""Boxes on the host against the same arithmetic box by box, or worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_dns.data.boxes import areas, clip, intersections, overlaps, to_pixels
from caffe_dns.proto.caffe_pb2 import ResizeParameter
from tests.layers.detection import reference
from tests.layers.detection.test_boxes import draw_boxes


def test_areas_and_overlaps() -> None:
    boxes = np.concatenate([draw_boxes(12).numpy(), [[0.5, 0.5, 0.4, 0.6], [0.5] * 4]])
    found = overlaps(boxes[:, None], boxes[None])
    for i, first in enumerate(boxes.tolist()):
        assert areas(boxes)[i] == pytest.approx(reference.area(first))
        for j, second in enumerate(boxes.tolist()):
            assert found[i, j] == pytest.approx(reference.overlap(first, second))


def test_infinite_boxes_are_no_reason_to_complain() -> None:
    """A net that has not learnt yet sees some; numpy's warnings would be errors here."""
    boxes = np.array([[0, 0, np.inf, 0], [0, 0, 1e30, 1e30], [0, 0, np.nan, 1]], np.float32)
    assert not (overlaps(boxes, np.array([[0, 0, 1, 1]], np.float32)) > 0.5).any()


def test_boxes_in_pixels_hold_their_last_pixel() -> None:
    boxes = np.array([[0.0, 0, 9, 4], [5, 3, 14, 9], [20, 0, 21, 0], [3, 3, 2, 9]])
    assert areas(boxes, in_pixels=True).tolist() == [50, 70, 2, 0]
    common = intersections(boxes[:1], boxes, in_pixels=True)
    assert common.tolist() == [50, 10, 0, 0]


def test_clip() -> None:
    box = np.array([[-0.5, 0.25, 1.5, 2]])
    assert clip(box).tolist() == [[0, 0.25, 1, 1]]
    assert clip(box * 4, (3, 5)).tolist() == [[0, 1, 5, 3]]


@pytest.mark.parametrize(
    ("resize", "box", "expected"),
    [
        (None, [0.1, 0.25, 0.5, 1.5], [20, 25, 100, 100]),
        ("resize_mode: WARP", [0.1, 0.25, 0.5, 1.5], [20, 25, 100, 100]),
        # 200 x 100 in 300 x 300 has a border of 75 above and below, a quarter of the whole.
        ("resize_mode: FIT_LARGE_SIZE_AND_PAD", [0.1, 0.25, 0.5, 0.5], [20, 0, 100, 50]),
        # In the border: as it is.
        ("resize_mode: FIT_LARGE_SIZE_AND_PAD", [0.1, 0, 0.5, 0.2], [20, 0, 100, 20]),
        ("resize_mode: FIT_SMALL_SIZE", [0.1, 0.25, 0.5, 1.5], [20, 25, 100, 100]),
        (
            "resize_mode: FIT_SMALL_SIZE height_scale: 50 width_scale: 40",
            [0.1, 0.2, 0.5, 9],
            [4, 10, 20, 100],
        ),
    ],
)
def test_to_pixels(resize: str | None, box: list[float], expected: list[float]) -> None:
    from google.protobuf import text_format

    param = None
    if resize is not None:
        param = text_format.Parse(f"height: 300 width: 300 {resize}", ResizeParameter())
    found, area = to_pixels(np.array([box]), (100, 200), param)
    np.testing.assert_allclose(found, [expected], rtol=1e-6)
    # With the extents of their own, boxes are not a pixel longer.
    longer = "scale" not in (resize or "")
    width, height = expected[2] - expected[0] + longer, expected[3] - expected[1] + longer
    np.testing.assert_allclose(area, [width * height], rtol=1e-6)


def test_a_tall_image_has_its_border_at_the_sides() -> None:
    resize = ResizeParameter(
        height=300, width=300, resize_mode=ResizeParameter.FIT_LARGE_SIZE_AND_PAD
    )
    found = to_pixels(np.array([[0.25, 0.1, 0.5, 0.5]]), (200, 100), resize)[0]
    np.testing.assert_allclose(found, [[0, 20, 50, 100]], rtol=1e-6)
