"""Interp, Upsample and Synopsys' Resize layers against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.layers.harness import check_gradients, draw, make_layer, refused, run
from tests.nets import input_layer, layer, make_net

SHAPE = (2, 3, 6, 5)


def slow_interp(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Corners on corners, straight lines between."""
    top = np.zeros((*x.shape[:2], height, width))
    for i, j in np.ndindex(height, width):
        y = i * (x.shape[2] - 1) / (height - 1) if height > 1 else 0
        z = j * (x.shape[3] - 1) / (width - 1) if width > 1 else 0
        rows = [(int(y), 1 - y % 1), (min(int(y) + 1, x.shape[2] - 1), y % 1)]
        columns = [(int(z), 1 - z % 1), (min(int(z) + 1, x.shape[3] - 1), z % 1)]
        top[:, :, i, j] = sum(p * q * x[:, :, r, c] for r, p in rows for c, q in columns)
    return top


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ("height: 9 width: 7", (9, 7)),
        ("height: 1 width: 3", (1, 3)),
        ("height: 6 width: 5", (6, 5)),
        ("zoom_factor: 2", (11, 9)),
        ("shrink_factor: 2", (3, 3)),
        ("shrink_factor: 2 zoom_factor: 3", (7, 7)),
        ("shrink_factor: 2 height: 9 width: 7", (3, 3)),
        ("shrink_factor: 2 zoom_factor: 3 height: 9 width: 7", (9, 7)),
    ],
)
def test_interp(settings: str, size: tuple[int, int]) -> None:
    made = make_layer(f"type: 'Interp' interp_param {{ {settings} }}", SHAPE)
    x = draw(*SHAPE)
    (top,) = run(made, x)
    np.testing.assert_allclose(top, slow_interp(x.numpy(), *size), rtol=1e-12, atol=1e-12)
    check_gradients(made, x)


def test_interp_cuts_off() -> None:
    made = make_layer(
        "type: 'Interp' interp_param { zoom_factor: 2 pad_beg: -1 pad_end: -2 }", SHAPE
    )
    x = draw(*SHAPE)
    expected = slow_interp(x.numpy()[:, :, 1:-2, 1:-2], 5, 3)
    np.testing.assert_allclose(run(made, x)[0], expected, rtol=1e-12, atol=1e-12)


def test_interp_to_the_size_of_another_blob() -> None:
    text = "type: 'Interp' interp_param { use_blob_size: true }"
    made = make_layer(text, SHAPE, (1, 7, 9, 4))
    x = draw(*SHAPE)
    top = made(x, draw(1, 7, 9, 4))
    np.testing.assert_allclose(top, slow_interp(x.numpy(), 9, 4), rtol=1e-12, atol=1e-12)
    assert "use_blob_size: is for a second bottom" in refused(text, SHAPE)
    plain = "type: 'Interp' interp_param { height: 3 width: 3 }"
    assert "use_blob_size: is for a second bottom" in refused(plain, SHAPE, SHAPE)


def test_what_interp_refuses() -> None:
    text = "type: 'Interp' interp_param {{ {} }}"
    assert "pad_end: may cut off" in refused(text.format("pad_end: 1"), SHAPE)
    assert "give height and width" in refused(text.format("height: 3"), SHAPE)
    assert "zoom_factor: must be" in refused(text.format("zoom_factor: 0"), SHAPE)
    assert "nothing is left of 6 x 5" in refused(text.format("zoom_factor: 2 pad_beg: -5"), SHAPE)


@pytest.mark.parametrize(("settings", "scale"), [("scale: 3", 3), ("", 1)])
def test_upsample_by_repeating(settings: str, scale: int) -> None:
    made = make_layer(f"type: 'Upsample' upsample_param {{ {settings} }}", SHAPE)
    x = draw(*SHAPE)
    expected = x.numpy().repeat(scale, 2).repeat(scale, 3)
    np.testing.assert_array_equal(run(made, x)[0], expected)
    check_gradients(made, x)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ("upsample_h: 11 upsample_w: 10", (11, 10)),
        ("scale: 2 pad_out_h: true", (11, 10)),
        ("", (12, 10)),
        ("scale_h: 2 scale_w: 3", (12, 15)),
    ],
)
def test_upsample_by_mask(settings: str, size: tuple[int, int]) -> None:
    made = make_layer(f"type: 'Upsample' upsample_param {{ {settings} }}", SHAPE, SHAPE)
    x, area = draw(*SHAPE), size[0] * size[1]
    generator = torch.Generator().manual_seed(5)
    mask = torch.stack([torch.randperm(area, generator=generator)[:30] for _ in range(6)])
    mask = mask.view(SHAPE).double()
    (top,) = run(made, x, mask)
    expected = np.zeros((2, 3, area))
    for n, c, y, z in np.ndindex(*SHAPE):
        expected[n, c, int(mask[n, c, y, z])] = x[n, c, y, z]
    np.testing.assert_array_equal(top, expected.reshape(2, 3, *size))
    assert torch.autograd.gradcheck(lambda x: made(x, mask), x.requires_grad_())


def test_upsample_takes_a_pooling_back() -> None:
    text = input_layer(data=(2, 3, 7, 5))
    text += layer(
        "pool", "Pooling", "data", "pool mask", "pooling_param { kernel_size: 2 stride: 2 }"
    )
    text += layer(
        "up", "Upsample", "pool mask", "up", "upsample_param { upsample_h: 7 upsample_w: 5 }"
    )
    net = make_net(text)
    data = torch.rand(2, 3, 7, 5)
    top = net({"data": data})["up"]
    assert ((top == data) | (top == 0)).all()
    assert (top != 0).sum() == 2 * 3 * 4 * 3


def test_what_upsample_refuses() -> None:
    text = "type: 'Upsample' upsample_param {{ {} }}"
    assert "upsample_h: needs a mask" in refused(text.format("upsample_h: 3 upsample_w: 3"), SHAPE)
    assert "give both scale_h and scale_w" in refused(text.format("scale_h: 3"), SHAPE, SHAPE)
    assert "pad_out_w: is for a scale of 2" in refused(
        text.format("scale: 3 pad_out_w: true"), SHAPE, SHAPE
    )
    assert "they need the same shape" in refused(text.format(""), SHAPE, (2, 3, 6, 6))
    made = make_layer(text.format(""), SHAPE, SHAPE)
    with pytest.raises(Exception, match="the mask's place 120 is out of range; 0 to 119 would"):
        made(draw(*SHAPE), torch.full(SHAPE, 120.0))


def slow_places(size: int, extent: int, way: str) -> list[float]:
    """Where each place of a top looks in the bottom, as TensorFlow and ONNX define it."""
    if way == "align_corners":
        return [i * (extent - 1) / (size - 1) if size > 1 else 0.0 for i in range(size)]
    if way == "":
        return [i * extent / size for i in range(size)]
    return [(i + 0.5) * extent / size - 0.5 for i in range(size)]


def inside(place: int, extent: int) -> int:
    return min(max(place, 0), extent - 1)


def slow_resize(x: np.ndarray, size: tuple[int, int], way: str, nearest: bool) -> np.ndarray:
    """Along each axis: the nearest of the pixels, or a mean of the two around."""
    for axis, extent in ((2, size[0]), (3, size[1])):
        pixels = np.moveaxis(x, axis, 0)
        rows = []
        for place in slow_places(extent, len(pixels), way):
            if nearest:
                # TensorFlow's middles: the pixel in which the middle lies.
                place += 0.5 if way in ("half_pixel_centers", "align_corners") else 0
                rows.append(pixels[inside(math.floor(place + 1e-6), len(pixels))])
                continue
            low = math.floor(place)
            before, behind = (pixels[inside(i, len(pixels))] for i in (low, math.ceil(place)))
            rows.append(before * (1 - (place - low)) + behind * (place - low))
        x = np.moveaxis(np.stack(rows), 0, axis)
    return x


WAYS = [
    ("ResizeNearestNeighbor", ""),
    ("ResizeNearestNeighbor", "align_corners"),
    ("ResizeNearestNeighbor", "half_pixel_centers"),
    ("ResizeNearestNeighbor", "half_pixel_onnx"),
    ("ResizeBilinear", ""),
    ("ResizeBilinear", "align_corners"),
    ("ResizeBilinear", "half_pixel_centers"),
    ("ResizeBilinear", "pytorch_half_pixel"),
]
RESIZES = {
    "ResizeNearestNeighbor": "resize_nearest_neighbor_param",
    "ResizeBilinear": "resize_bilinear_param",
}


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_synopsys_resizes(kind: str, way: str, rows: bool) -> None:
    x = draw(*SHAPE)
    for size in ((11, 7), (4, 9), (6, 5)):
        expected = slow_resize(x.numpy(), size, way, kind == "ResizeNearestNeighbor")
        given, top = (x.permute(0, 2, 3, 1), np.moveaxis(expected, 1, 3)) if rows else (x, expected)
        settings = f"output_height: {size[0]} output_width: {size[1]}"
        settings += "" if rows else " data_format: 'NCHW'"
        settings += f" {way}: true" if way else ""
        made = make_layer(f"type: '{kind}' {RESIZES[kind]} {{ {settings} }}", tuple(given.shape))
        # Places are float32 numbers, as there.
        np.testing.assert_allclose(run(made, given)[0], top, rtol=1e-5, atol=1e-5)
    check_gradients(made, given)


def test_synopsys_scales() -> None:
    # floor(10 * 0.7) is 7 in float32, in which 0.7 is a little less.
    text = "type: 'ResizeBilinear' resize_bilinear_param { scale_height: 0.7 scale_width: 2.1 }"
    made = make_layer(text, (1, 10, 3, 2))
    assert made.reshape([(1, 10, 3, 2)]) == [(1, 7, 6, 2)]


def test_what_synopsys_resizes_refuse() -> None:
    text = "type: 'ResizeBilinear' resize_bilinear_param {{ {} }}"
    for settings, message in (
        ("data_format: 'NCHWD'", "data_format: is 'NCHWD'; known: NHWC, NCHW"),
        ("align_corners: true half_pixel_centers: true", "give align_corners or half_pixel_cent"),
        ("scale_height: 0.1", "output_height: nothing is left of the height"),
    ):
        assert message in refused(text.format(settings), (1, 6, 5, 2))
