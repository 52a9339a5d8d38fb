"""Pooling of videos against its definition, window by window, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.layers.harness import check_gradients, draw, make_layer, refused, run

#: The same windows as C3D 1.0, C3D 1.1, P3D and video-caffe write them.
SPELLINGS = [
    "type: 'Pooling3D' pooling_param { pool: %s kernel_size: 3 kernel_depth: 2 stride: 2 "
    "temporal_stride: 2 }",
    "type: 'Pooling3D' pooling3d_param { pool: %s kernel_size: 3 kernel_depth: 2 stride: 2 "
    "temporal_stride: 2 }",
    "type: 'Pooling3D' pooling3d_param { pool: %s kernel_size: 3 kernel_l: 2 stride: 2 "
    "stride_l: 2 }",
    "type: 'NdPooling' pooling_param { pool: %s kernel_shape { dim: 2 dim: 3 dim: 3 } "
    "stride_shape { dim: 2 dim: 2 dim: 2 } }",
]
PADDED = (
    "type: 'NdPooling' pooling_param { pool: %s kernel_shape { dim: 3 dim: 2 dim: 3 } "
    "stride_shape { dim: 1 dim: 2 dim: 2 } pad_shape { dim: 1 dim: 1 dim: 0 } }"
)


def pooled(
    x: np.ndarray, kernel: list[int], stride: list[int], pad: list[int], mean: bool
) -> np.ndarray:
    """Windows that begin inside the video, or its padding where there is none; means count that."""
    counts = []
    for extent, k, s, p in zip(x.shape[2:], kernel, stride, pad, strict=True):
        number = -(-(extent + 2 * p - k) // s) + 1
        counts.append(number - (p > 0 and (number - 1) * s >= extent + p))
    result = np.empty((*x.shape[:2], *counts))
    for at in itertools.product(*map(range, counts)):
        starts = [i * s - p for i, s, p in zip(at, stride, pad, strict=True)]
        ends = [
            min(start + k, extent + p)
            for start, k, extent, p in zip(starts, kernel, x.shape[2:], pad, strict=True)
        ]
        a, b, c = (slice(max(a, 0), b) for a, b in zip(starts, ends, strict=True))
        window = x[:, :, a, b, c].reshape(*x.shape[:2], -1)
        size = np.prod([b - a for a, b in zip(starts, ends, strict=True)])
        result[:, :, at[0], at[1], at[2]] = window.sum(-1) / size if mean else window.max(-1)
    return result


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("text", SPELLINGS)
def test_pooling(text: str, method: str) -> None:
    x = draw(2, 3, 5, 6, 8)
    made = make_layer(text % method, tuple(x.shape))
    expected = pooled(x.numpy(), [2, 3, 3], [2, 2, 2], [0, 0, 0], method == "AVE")
    np.testing.assert_allclose(run(made, x)[0], expected, rtol=1e-12)
    check_gradients(made, draw(1, 2, 5, 4, 4))


@pytest.mark.parametrize("method", ["MAX", "AVE"])
def test_padding(method: str) -> None:
    x = draw(2, 3, 4, 5, 8)
    made = make_layer(PADDED % method, tuple(x.shape))
    expected = pooled(x.numpy(), [3, 2, 3], [1, 2, 2], [1, 1, 0], method == "AVE")
    np.testing.assert_allclose(run(made, x)[0], expected, rtol=1e-12)


def test_what_does_not_fit() -> None:
    video = (1, 2, 4, 6, 6)
    assert "kernel must be given" in refused("type: 'Pooling3D'", video)
    assert "STOCHASTIC is for images" in refused(SPELLINGS[0] % "STOCHASTIC", video)
    assert "needs 5 axes" in refused(SPELLINGS[0] % "MAX", video[1:])
    long = "type: 'Pooling3D' pooling_param { kernel_size: 1 kernel_depth: 6 }"
    assert "does not fit into" in refused(long, video)
    short = "type: 'NdPooling' pooling_param { kernel_shape { dim: 2 dim: 2 } }"
    assert "kernel_shape: needs 3 values" in refused(short, video)
    padded = "type: 'Pooling3D' pooling3d_param { kernel_size: 1 kernel_depth: 1 pad: 1 }"
    assert "pad must be smaller" in refused(padded, video)
    whole = "type: 'NdPooling' pooling_param { global_pooling: true }"
    assert "is for images only" in refused(whole, video)
    for field, types in (("kernel_depth: 2", "Pooling3D"), ("pad_shape {}", "NdPooling")):
        message = refused(f"type: 'Pooling' pooling_param {{ {field} }}", video[1:])
        assert f"is for layers of type {types} only" in message
