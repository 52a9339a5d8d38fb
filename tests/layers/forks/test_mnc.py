"""ROIWarping, MaskResize and MaskPooling against their definitions, place by place, in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from tests.layers.harness import check_gradients, draw, make_layer, refused, run

WARPING = "type: 'ROIWarping' roi_warping_param { pooled_h: 3 pooled_w: 4 spatial_scale: 0.25 }"
RESIZING = "type: 'MaskResize' mask_resize_param { output_height: %d output_width: %d }"
#: Image and corners; one lies beyond the map, one ends before it begins.
REGIONS: list[list[float]] = [
    [0, 3, 2, 21, 30],
    [1, 0, 0, 27, 35],
    [1, 14, 6, 14, 25],
    [0, 30, 40, 60, 70],
    [1, 9, 9, 2, 3],
]


def between(plane: np.ndarray, y: float, x: float) -> float:
    height, width = plane.shape
    if not (-0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    found = 0.0
    for line, place in itertools.product(
        {math.floor(y), math.ceil(y)}, {math.floor(x), math.ceil(x)}
    ):
        found += (1 - abs(y - line)) * (1 - abs(x - place)) * plane[line, place]
    return found


def warped(bottom: np.ndarray, regions: list[list[float]]) -> np.ndarray:
    top = np.zeros((len(regions), bottom.shape[1], 3, 4))
    for r, (image, *corners) in enumerate(regions):
        x1, y1, x2, y2 = (math.floor(corner * 0.25 + 0.5) for corner in corners)
        for c, i, j in np.ndindex(*top.shape[1:]):
            y, x = y1 + i * max(y2 - y1, 0) / 3, x1 + j * max(x2 - x1, 0) / 4
            top[r, c, i, j] = between(bottom[int(image), c], y, x)
    return top


def test_roi_warping() -> None:
    bottom, regions = draw(2, 3, 9, 7), torch.tensor(REGIONS, dtype=torch.float64)
    made = make_layer(WARPING, tuple(bottom.shape), tuple(regions.shape))
    expected = warped(bottom.numpy(), REGIONS)
    assert not expected[3].any()
    np.testing.assert_allclose(run(made, bottom, regions)[0], expected, rtol=1e-9, atol=1e-12)
    inputs = bottom[:, :1].clone().requires_grad_()
    made = make_layer(WARPING, tuple(inputs.shape), tuple(regions.shape))
    assert torch.autograd.gradcheck(lambda x: made(x, regions), (inputs,))


def test_gradients_of_regions() -> None:
    """Those of regions that end at whole pixels, but were not rounded: by differences."""
    bottom = draw(1, 2, 9, 7)
    corners = torch.tensor([[0, 5, 9, 22, 27.0]], dtype=torch.float64)
    made = make_layer(WARPING, tuple(bottom.shape), (1, 5))
    leaf = corners.clone().requires_grad_()
    given = draw(1, 2, 3, 4, seed=3)
    made(bottom, leaf).backward(given)

    def total(moved: np.ndarray) -> float:
        x1, y1, x2, y2 = moved
        found = 0.0
        for c, i, j in np.ndindex(2, 3, 4):
            y, x = y1 + i * (y2 - y1) / 3, x1 + j * (x2 - x1) / 4
            found += float(given[0, c, i, j]) * between(bottom[0, c].numpy(), y, x)
        return found

    # 5 and 22 become 1 and 6 pixels, 9 and 27 become 2 and 7.
    whole = np.array([1.0, 2, 6, 7])
    assert leaf.grad is not None
    assert leaf.grad[0, 0] == 0
    for axis in range(4):
        step = np.zeros(4)
        step[axis] = 1e-6
        # Ahead only: at a whole pixel the slope changes.
        slope = (total(whole + step) - total(whole)) / 1e-6
        np.testing.assert_allclose(leaf.grad[0, 1 + axis], 0.25 * slope, rtol=1e-4, atol=1e-6)


def test_mask_resize() -> None:
    for size in ((3, 2), (12, 15), (6, 5)):
        bottom = draw(2, 3, 6, 5)
        made = make_layer(RESIZING % size, (2, 3, 6, 5))
        (top,) = run(made, bottom)
        for n, c, i, j in np.ndindex(*top.shape):
            expected = between(bottom[n, c].numpy(), i * 6 / size[0], j * 5 / size[1])
            np.testing.assert_allclose(top[n, c, i, j], expected, rtol=1e-9, atol=1e-12)
    check_gradients(make_layer(RESIZING % (4, 7), (1, 2, 3, 3)), draw(1, 2, 3, 3))


def test_mask_pooling() -> None:
    bottom, masks = draw(2, 3, 4, 5), draw(2, 1, 4, 5, seed=1)
    (top,) = run(make_layer("type: 'MaskPooling'", (2, 3, 4, 5), (2, 1, 4, 5)), bottom, masks)
    np.testing.assert_array_equal(top, bottom.numpy() * masks.numpy())


def test_what_does_not_fit() -> None:
    assert "output_height: must be positive" in refused("type: 'MaskResize'", (2, 3, 4, 5))
    assert "the bottom needs 4 axes" in refused(RESIZING % (2, 2), (2, 3, 4))
    assert "pooled_h: must be positive" in refused("type: 'ROIWarping'", (2, 3, 4, 5), (1, 5))
    assert "rows of 5 numbers" in refused(WARPING, (2, 3, 4, 5), (1, 4))
    assert "one for each item and place" in refused(
        "type: 'MaskPooling'", (2, 3, 4, 5), (2, 3, 4, 5)
    )
