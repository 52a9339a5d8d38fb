"""SPP against loops over the bins of each level."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.layers.harness import check_gradients, draw, make_layer, refused, run
from tests.oracle import run_layer_case


def test_golden_case() -> None:
    run_layer_case("spp")


def pool_level(plane: np.ndarray, level: int, method: str) -> list[float]:
    """The bins of one H x W plane, row by row."""
    kernels, pads = [], []
    for extent in plane.shape:
        kernels.append(math.ceil(extent / 2**level))
        pads.append((kernels[-1] * 2**level - extent + 1) // 2)
    results = []
    for row in range(2**level):
        for column in range(2**level):
            starts = [b * k - p for b, k, p in zip((row, column), kernels, pads, strict=True)]
            ends = [
                min(s + k, e + p)
                for s, k, e, p in zip(starts, kernels, plane.shape, pads, strict=True)
            ]
            inside = plane[max(starts[0], 0) : ends[0], max(starts[1], 0) : ends[1]]
            area = (ends[0] - starts[0]) * (ends[1] - starts[1])
            results.append(inside.max() if method == "MAX" else inside.sum() / area)
    return results


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("image", [(9, 8), (7, 13), (4, 4)])
def test_bins(method: str, image: tuple[int, int]) -> None:
    shape = (2, 3, *image)
    layer = make_layer(f"type: 'SPP' spp_param {{ pyramid_height: 3 pool: {method} }}", shape)
    bottom = draw(*shape)
    expected = [
        [bin for level in range(3) for plane in item for bin in pool_level(plane, level, method)]
        for item in bottom.numpy()
    ]
    top = run(layer, bottom)[0]
    assert top.shape == (2, 3 * (1 + 4 + 16))
    np.testing.assert_allclose(top, expected, rtol=1e-12)
    check_gradients(layer, bottom[:1])


def test_images_of_another_size_give_as_many_numbers() -> None:
    layer = make_layer("type: 'SPP' spp_param { pyramid_height: 2 }", (2, 3, 9, 8))
    assert run(layer, draw(2, 3, 6, 5))[0].shape == (2, 15)


def test_a_single_level_keeps_four_axes() -> None:
    layer = make_layer("type: 'SPP' spp_param { pyramid_height: 1 pool: AVE }", (2, 3, 5, 4))
    bottom = draw(2, 3, 5, 4)
    np.testing.assert_allclose(
        run(layer, bottom)[0], bottom.numpy().mean((2, 3), keepdims=True), rtol=1e-12
    )


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_stochastic(phase: str) -> None:
    settings = "pyramid_height: 2 pool: STOCHASTIC"
    text = f"type: 'SPP' phase: {phase} spp_param {{ {settings} }}"
    layer, twin = (make_layer(text, (2, 3, 4, 6)) for _ in range(2))
    bottom = draw(2, 3, 4, 6, positive=True)
    top = run(layer, bottom)[0]
    whole = top[:, :3].numpy()
    planes = bottom.numpy().reshape(2, 3, -1)
    if phase == "TRAIN":
        assert (planes == whole[..., None]).any(-1).all()
        assert torch.equal(top, run(twin, bottom)[0])
    else:
        np.testing.assert_allclose(whole, (planes**2).sum(-1) / planes.sum(-1), rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "shape", "part"),
    [
        ("", (2, 3, 5, 4), "spp_param.pyramid_height: must be given"),
        ("pyramid_height: 2", (2, 3, 5), "the bottom needs 4 axes"),
        ("pyramid_height: 4", (2, 3, 3, 9), "3 x 9 cannot be cut into 4 x 4 bins"),
        ("pyramid_height: 2 pool: STOCHASTIC", (2, 3, 5, 4), "STOCHASTIC takes no padding"),
    ],
)
def test_wrong_settings(settings: str, shape: tuple[int, ...], part: str) -> None:
    assert part in refused(f"type: 'SPP' spp_param {{ {settings} }}", shape)
