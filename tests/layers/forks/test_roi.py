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


def psroi_layer(group: int, outputs: int, scale: float, *shapes: tuple[int, ...]) -> Layer:
    settings = f"spatial_scale: {scale} output_dim: {outputs} group_size: {group}"
    return make_layer(f"type: 'PSROIPooling' psroi_pooling_param {{ {settings} }}", *shapes)


def slow_psroi_pool(
    bottom: np.ndarray, regions: list[list[float]], group: int, outputs: int, scale: float
) -> np.ndarray:
    """The mean of each bin's pixels, one bin after the other."""
    top = np.zeros((len(regions), outputs, group, group))
    extents = bottom.shape[2:]
    for r, d, i, j in np.ndindex(*top.shape):
        image, x1, y1, x2, y2 = regions[r]
        slices = []
        for first, last, k, extent in ((y1, y2, i, extents[0]), (x1, x2, j, extents[1])):
            start, end = rounded(first) * scale, (rounded(last) + 1) * scale
            size = max(end - start, 0.1) / group
            low = min(max(math.floor(k * size + start), 0), extent)
            slices.append(slice(low, min(max(math.ceil((k + 1) * size + start), 0), extent)))
        pixels = bottom[int(image), (d * group + i) * group + j, slices[0], slices[1]]
        top[r, d, i, j] = pixels.mean() if pixels.size else 0
    return top


@pytest.mark.parametrize(("group", "outputs"), [(1, 4), (2, 3), (3, 1)])
def test_psroi_pooling(group: int, outputs: int) -> None:
    bottom = draw(2, outputs * group**2, 10, 8)
    regions = torch.tensor(REGIONS).double()
    layer = psroi_layer(group, outputs, 1 / 16, bottom.shape, regions.shape)
    (top,) = run(layer, bottom, regions)
    expected = slow_psroi_pool(bottom.numpy(), REGIONS, group, outputs, 1 / 16)
    np.testing.assert_allclose(top, expected, rtol=1e-12, atol=1e-12)
    # It is linear, so a random direction shows any number that is wrong.
    assert torch.autograd.gradcheck(
        lambda x: layer(x, regions), bottom.requires_grad_(), fast_mode=True
    )


def test_psroi_pooling_in_float32_far_from_zero() -> None:
    bottom = (draw(1, 4, 60, 80) + 1000).float()
    regions: list[list[float]] = [[0, 3, 5, 700, 700], [0, 600, 500, 640, 530]]
    layer = psroi_layer(2, 1, 1 / 8, bottom.shape, (2, 5))
    (top,) = run(layer, bottom, torch.tensor(regions).float())
    expected = slow_psroi_pool(bottom.numpy().astype(np.float64), regions, 2, 1, 1 / 8)
    np.testing.assert_allclose(top, expected, rtol=1e-7)


def test_channels_of_psroi_pooling() -> None:
    kind = "type: 'PSROIPooling' psroi_pooling_param {{ spatial_scale: 1 {} }}"
    message = refused(kind.format("output_dim: 2 group_size: 3"), (1, 12, 4, 4), (2, 5))
    assert message.endswith("the bottom has 12 channels; output_dim * group_size^2 is 18")
    assert "group_size: must be" in refused(
        kind.format("output_dim: 2 group_size: 0"), (1, 12, 4, 4), (2, 5)
    )


def test_regions_with_a_border() -> None:
    """MS-CNN's pad_ratio: the same as without, of regions that are larger by hand."""
    settings = "roi_pooling_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.125 %s }"
    bottom = draw(2, 3, 18, 14)
    larger = [
        [
            image,
            x1 - (x2 - x1 + 1) / 4,
            y1 - (y2 - y1 + 1) / 4,
            x2 + (x2 - x1 + 1) / 4,
            y2 + (y2 - y1 + 1) / 4,
        ]
        for image, x1, y1, x2, y2 in REGIONS
    ]
    shapes = tuple(bottom.shape), (len(REGIONS), 5)
    padded = make_layer("type: 'ROIPooling' " + settings % "pad_ratio: 0.25", *shapes)
    plain = make_layer("type: 'ROIPooling' " + settings % "", *shapes)
    regions = torch.tensor(REGIONS, dtype=torch.float64)
    expected = plain(bottom, torch.tensor(larger, dtype=torch.float64))
    assert torch.equal(padded(bottom, regions), expected)
    assert not torch.equal(padded(bottom, regions), plain(bottom, regions))


def slow_roi_align(
    bottom: np.ndarray, regions: list[list[float]], size: tuple[int, int], scale: float, pad: float
) -> np.ndarray:
    height, width = bottom.shape[2:]
    top = np.zeros((len(regions), bottom.shape[1], size[0] + 1, size[1] + 1))
    for r, (image, *corners) in enumerate(regions):
        more = [(corners[i + 2] - corners[i] + 1) * pad for i in (0, 1)]
        x1, y1 = ((corners[i] - more[i]) * scale - 0.5 for i in (0, 1))
        x2, y2 = ((corners[i + 2] + more[i]) * scale - 0.5 for i in (0, 1))
        for i, j in itertools.product(range(size[0] + 1), range(size[1] + 1)):
            y, x = y1 + i * (y2 - y1) / size[0], x1 + j * (x2 - x1) / size[1]
            inside = -0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5
            if x2 <= x1 or y2 <= y1 or not inside:
                continue
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            for dy, dx in itertools.product((0, 1), (0, 1)):
                line, place = math.floor(y) + dy, math.floor(x) + dx
                share = (1 - abs(y - line)) * (1 - abs(x - place))
                if line < height and place < width:
                    top[r, :, i, j] += share * bottom[int(image), :, line, place]
    return top


@pytest.mark.parametrize("pad", [0, 0.25])
def test_roi_align(pad: float) -> None:
    text = (
        "type: 'ROIAlign' roi_pooling_param { pooled_h: 3 pooled_w: 4 spatial_scale: 0.0625 "
        f"pad_ratio: {pad} }}"
    )
    bottom = draw(2, 3, 9, 7)
    regions = torch.tensor(REGIONS).double()
    made = make_layer(text, tuple(bottom.shape), tuple(regions.shape))
    expected = slow_roi_align(bottom.numpy(), REGIONS, (3, 4), 0.0625, pad)
    assert not expected[5].any()
    np.testing.assert_allclose(run(made, bottom, regions)[0], expected, atol=1e-5)
    inputs = bottom[:, :1].clone().requires_grad_()
    made = make_layer(text, tuple(inputs.shape), (3, 5))
    assert torch.autograd.gradcheck(lambda x: made(x, regions[:3]), (inputs,))


def test_roi_align_of_a_region_that_is_no_number() -> None:
    """As of a net that diverges."""
    text = "type: 'ROIAlign' roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 1 }"
    for bad in (math.nan, math.inf):
        regions = torch.tensor([[0, 1, bad, 4, 5], [0, 1, 2, 4, 5]]).double()
        (top,) = run(make_layer(text, (1, 1, 9, 9), (2, 5)), draw(1, 1, 9, 9), regions)
        assert top[0].isnan().any() and top[1].isfinite().all()
