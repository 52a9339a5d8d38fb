"""Im2col against explicit loops over kernel and output positions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.layers.harness import check_gradients, draw, make_layer, refused, run
from tests.oracle import run_layer_case


@pytest.mark.parametrize("name", ["im2col", "im2col_outreaching"])
def test_golden_case(name: str) -> None:
    run_layer_case(name)


def patches(
    image: np.ndarray, kernel: list[int], stride: list[int], pad: list[int], dilation: list[int]
) -> np.ndarray:
    """C x spatial to (C * kernel positions) x output positions, entry by entry."""
    padded = np.pad(image, [(0, 0), *((p, p) for p in pad)])
    outputs = [
        (extent - d * (k - 1) - 1) // s + 1
        for extent, k, s, d in zip(padded.shape[1:], kernel, stride, dilation, strict=True)
    ]
    rows = []
    for channel, *position in itertools.product(range(len(image)), *map(range, kernel)):
        row = np.empty(outputs)
        for output in np.ndindex(*outputs):
            steps = zip(output, stride, position, dilation, strict=True)
            row[output] = padded[channel][tuple(o * s + k * d for o, s, k, d in steps)]
        rows.append(row)
    return np.stack(rows)


@pytest.mark.parametrize(
    ("settings", "shape", "expected"),
    [
        ("kernel_size: 3", (2, 3, 7), ([3], [1], [0], [1])),
        (
            "kernel_h: 2 kernel_w: 3 stride_h: 2 stride_w: 1 pad_h: 0 pad_w: 2",
            (2, 3, 5, 6),
            ([2, 3], [2, 1], [0, 2], [1, 1]),
        ),
        (
            "kernel_size: 2 kernel_size: 3 dilation: 3 dilation: 2 pad: 1",
            (2, 3, 6, 7),
            ([2, 3], [1, 1], [1, 1], [3, 2]),
        ),
        (
            "kernel_size: 2 stride: 2 dilation: 2 force_nd_im2col: true engine: CAFFE",
            (2, 2, 5, 6, 7),
            ([2, 2, 2], [2, 2, 2], [0, 0, 0], [2, 2, 2]),
        ),
    ],
)
def test_patches(settings: str, shape: tuple[int, ...], expected: tuple[list[int], ...]) -> None:
    layer = make_layer(f"type: 'Im2col' convolution_param {{ {settings} }}", shape)
    bottom = draw(*shape)
    wanted = np.stack([patches(image, *expected) for image in bottom.numpy()])
    np.testing.assert_array_equal(run(layer, bottom)[0], wanted)
    check_gradients(layer, draw(1, *shape[1:]))


def test_channel_axis() -> None:
    settings = "kernel_size: 2 kernel_size: 3 axis: -3"
    layer = make_layer(f"type: 'Im2col' convolution_param {{ {settings} }}", (2, 3, 4, 5, 6))
    bottom = draw(2, 3, 4, 5, 6)
    expected = F.unfold(bottom.flatten(0, 1), (2, 3)).reshape(2, 3, 24, 4, 4)
    np.testing.assert_array_equal(run(layer, bottom)[0], expected)


def test_memory_format_does_not_matter() -> None:
    layer = make_layer("type: 'Im2col' convolution_param { kernel_size: 3 }", (2, 3, 5, 6))
    bottom = draw(2, 3, 5, 6)
    top = run(layer, bottom.to(memory_format=torch.channels_last))[0]
    np.testing.assert_array_equal(top, run(layer, bottom)[0])


@pytest.mark.parametrize(
    ("settings", "shape", "part"),
    [
        ("", (2, 3, 5, 6), "kernel_size: given 0 times"),
        ("kernel_size: 0", (2, 3, 5, 6), "kernel_size: must be at least 1"),
        ("kernel_h: 3", (2, 3, 5, 6), "kernel_size: must be at least 1"),
        ("kernel_size: 3 kernel_h: 3 kernel_w: 3", (2, 3, 5, 6), "not both"),
        ("kernel_h: 3 kernel_w: 3", (2, 3, 5), "for 2 spatial axes only"),
        ("kernel_size: 3 stride: 0", (2, 3, 5, 6), "stride: must be at least 1"),
        ("kernel_size: 3 pad: 1 pad: 1 pad: 1", (2, 3, 5, 6), "pad: given 3 times"),
        ("kernel_size: 6", (2, 3, 5, 6), "larger than the padded input"),
        ("kernel_size: 7 stride: 2", (2, 3, 5, 6), "larger than the padded input"),
        ("kernel_size: 3 axis: 3", (2, 3, 5, 6), "no spatial axis"),
        ("kernel_size: 3 pad_l: 1", (2, 3, 5, 6), "pad_l: is for layers of type Convolution only"),
        ("kernel_size: 3 hole: 2", (2, 3, 5, 6), "hole: is for layers of type Convolution only"),
    ],
)
def test_wrong_settings(settings: str, shape: tuple[int, ...], part: str) -> None:
    assert part in refused(f"type: 'Im2col' convolution_param {{ {settings} }}", shape)
