"""DenseBlock against its transitions, one after the other, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_dns.layers import Layer
from tests.layers.harness import check_gradients, draw, make_layer, refused, run

TEXT = "type: 'DenseBlock' denseblock_param { numTransition: 2 growthRate: 3 %s }"
SHAPE = (3, 4, 5, 6)


def filled(more: str = "") -> Layer:
    made = make_layer(TEXT % more, SHAPE).double()
    with torch.no_grad():
        for index, blob in enumerate(made.blobs):
            blob.copy_(draw(*blob.shape, seed=1 + index, positive=index in (8, 9)))
    return made


def convolved(values: np.ndarray, filters: np.ndarray, dilation: int = 1) -> np.ndarray:
    """Maps ... x C x H x W, by filters of 3 x 3 and as far as their centres are on the map."""
    *others, _, height, width = values.shape
    padded = np.pad(values, [(0, 0)] * (len(others) + 1) + [(dilation, dilation)] * 2)
    found = np.zeros((*others, len(filters), height, width))
    for row, column in np.ndindex(3, 3):
        y, x = row * dilation, column * dilation
        part = padded[..., y : y + height, x : x + width]
        found += np.einsum("...chw,oc->...ohw", part, filters[:, :, row, column])
    return found


@pytest.mark.parametrize("train", [False, True])
def test_transitions(train: bool) -> None:
    made = filled("moving_average_fraction: 0.25").train(train)
    blobs = [blob.detach().numpy().copy() for blob in made.blobs]
    assert [blob.shape[1] for blob in blobs[:-1]] == [4, 7] * 5
    x = draw(*SHAPE, seed=30)
    (top,) = run(made, x)
    values = x.numpy()
    for index in range(2):
        filters, factor, shift, mean, variance = blobs[index:10:2]
        if train:
            axes = (0, 2, 3)
            batch_mean = values.mean(axes, keepdims=True)
            batch_variance = values.var(axes, keepdims=True)
            count = values[:, 0].size
            for place, old, new in (
                (6 + index, mean, batch_mean),
                (8 + index, variance, batch_variance * count / (count - 1)),
            ):
                expected = 0.75 * old + 0.25 * new
                np.testing.assert_allclose(made.blobs[place], expected, rtol=1e-10)
            mean, variance = batch_mean, batch_variance
        normalized = factor * (values - mean) / np.sqrt(variance + 1e-5) + shift
        values = np.concatenate([values, convolved(np.maximum(normalized, 0), filters)], 1)
    np.testing.assert_allclose(top.detach(), values, rtol=1e-9, atol=1e-10)


def test_gradients() -> None:
    small = make_layer(
        "type: 'DenseBlock' denseblock_param { numTransition: 2 growthRate: 1 }", (2, 2, 3, 2)
    )
    check_gradients(small, draw(2, 2, 3, 2, seed=40))
    check_gradients(small.train(), draw(2, 2, 3, 2, seed=40))


def test_what_does_not_fit() -> None:
    for more, field in (
        ("use_BC: true", "use_BC: is not supported; false"),
        ("use_dropout: true", "use_dropout: is not supported; false"),
        ("filter_H: 5", "filter_H: is not supported; 3"),
    ):
        assert f"denseblock_param.{field} would do" in refused(TEXT % more, SHAPE)
    assert "the bottom needs 4 axes" in refused(TEXT % "", (3, 4))
    assert "numTransition: must be positive" in refused(TEXT.replace("2", "0", 1) % "", SHAPE)
