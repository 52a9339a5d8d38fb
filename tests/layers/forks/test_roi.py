"""Pooling of regions against loops over bins and pixels in float64, written from the papers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.layers.base import Layer
from caffe_dns.layers.forks import roi
from tests.layers.harness import draw, make_layer, refused, run

#: Inside, over every border, outside, of one pixel, with corners in the wrong order, halves.
REGIONS: list[list[float]] = [
    [0, 8, 16, 80, 96],
    [1, -24, -40, 40, 24],
    [1, 60, 90, 300, 200],
    [0, 400, 400, 500, 500],
    [1, 32, 32, 32, 32],
    [0, 64, 64, 16, 16],
    [0, 8, 24, 56, 104],
    [1, 0, 0, 111, 143],
]


def rounded(value: float) -> int:
    """Halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def bounds(first: int, last: int, bins: int, extent: int) -> list[tuple[int, int]]:
    """The pixels of each bin of one axis of a region with whole corners, within the bottom."""
    size = max(last - first + 1, 1) / bins
    return [
        (
            min(max(math.floor(i * size) + first, 0), extent),
            min(max(math.ceil((i + 1) * size) + first, 0), extent),
        )
        for i in range(bins)
    ]


def slow_roi_pool(
    bottom: np.ndarray, regions: list[list[float]], size: tuple[int, int], scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """The top, and for each of its numbers the place in the bottom's plane, or -1."""
    shape = (len(regions), bottom.shape[1], *size)
    top, place = np.zeros(shape), np.full(shape, -1)
    for r, (image, *corners) in enumerate(regions):
        plane = bottom[int(image)]
        x1, y1, x2, y2 = (rounded(corner * scale) for corner in corners)
        rows = bounds(y1, y2, size[0], bottom.shape[2])
        columns = bounds(x1, x2, size[1], bottom.shape[3])
        for c, i, j in itertools.product(*map(range, shape[1:])):
            for y, x in itertools.product(range(*rows[i]), range(*columns[j])):
                if place[r, c, i, j] < 0 or plane[c, y, x] > top[r, c, i, j]:
                    top[r, c, i, j], place[r, c, i, j] = plane[c, y, x], y * bottom.shape[3] + x
    return top, place


def roi_layer(size: tuple[int, int], scale: float, *shapes: tuple[int, ...]) -> Layer:
    settings = f"pooled_h: {size[0]} pooled_w: {size[1]} spatial_scale: {scale}"
    return make_layer(f"type: 'ROIPooling' roi_pooling_param {{ {settings} }}", *shapes)


def images() -> Tensor:
    # Few different values, so that equal maxima are common.
    generator = torch.Generator().manual_seed(4)
    return torch.randint(-3, 4, (2, 3, 10, 8), generator=generator).double() / 4


@pytest.mark.parametrize("chunk", [1, 500, 1 << 22])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 7)])
def test_roi_pooling(size: tuple[int, int], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi, "CHUNK", chunk)
    bottom, regions = images().requires_grad_(), torch.tensor(REGIONS).double()
    layer = roi_layer(size, 1 / 16, bottom.shape, regions.shape)
    (top,) = run(layer, bottom, regions)
    expected, place = slow_roi_pool(bottom.detach().numpy(), REGIONS, size, 1 / 16)
    np.testing.assert_array_equal(top.detach(), expected)

    gradient = draw(*top.shape)
    (found,) = torch.autograd.grad(top, bottom, gradient)
    wanted = np.zeros(bottom.shape)
    for (r, c, i, j), where in np.ndenumerate(place):
        if where >= 0:
            wanted[int(REGIONS[r][0]), c].reshape(-1)[where] += gradient[r, c, i, j]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_roi_pooling_of_halves_and_other_shapes() -> None:
    regions = [[0, 2.5, 1.5, 6.49, 7.5], [0, -2.5, -0.5, 4.5, 3.5]]
    bottom = images()
    layer = roi_layer((2, 2), 1.0, bottom.shape, (2, 5, 1, 1))
    (top,) = run(layer, bottom, torch.tensor(regions).double().view(2, 5, 1, 1))
    np.testing.assert_array_equal(top, slow_roi_pool(bottom.numpy(), regions, (2, 2), 1.0)[0])


def test_roi_pooling_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    bottom = torch.randperm(2 * 2 * 6 * 5, generator=generator).double().view(2, 2, 6, 5) / 10
    regions = torch.tensor([[0, 0, 0, 4, 5], [1, 1, 2, 9, 9], [1, 2, 2, 1, 1]]).double()
    layer = roi_layer((2, 3), 1.0, bottom.shape, regions.shape)
    assert torch.autograd.gradcheck(lambda x: layer(x, regions), bottom.requires_grad_())


def test_no_region() -> None:
    layer = roi_layer((2, 2), 1.0, (1, 3, 4, 4), (0, 5))
    assert run(layer, torch.zeros(1, 3, 4, 4), torch.zeros(0, 5))[0].shape == (0, 3, 2, 2)


def test_a_region_of_an_image_that_is_not_there() -> None:
    layer = roi_layer((2, 2), 1.0, (2, 3, 4, 4), (1, 5))
    with pytest.raises(Exception, match=r"a region's image 2 is out of range; 0 to 1"):
        layer(torch.zeros(2, 3, 4, 4), torch.tensor([[2.0, 0, 0, 1, 1]]))


def test_what_regions_must_look_like() -> None:
    kind = "type: 'ROIPooling' roi_pooling_param { pooled_h: 2 pooled_w: 2 }"
    assert "rows of 5 numbers" in refused(kind, (1, 3, 4, 4), (2, 4))
    assert "needs 4 axes" in refused(kind, (1, 3), (2, 5))
    nothing = "type: 'ROIPooling' roi_pooling_param { pooled_w: 2 }"
    assert "roi_pooling_param.pooled_h: must be given" in refused(nothing, (1, 3, 4, 4), (2, 5))
