"""Losses on boxes against their formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.layers.harness import draw, make_layer, refused, run

SHAPE = (3, 8, 1, 2)


def smooth_l1(x: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    inner = np.abs(x) < 1 / sigma**2
    return np.where(inner, 0.5 * (sigma * x) ** 2, np.abs(x) - 0.5 / sigma**2)


def slope(x: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    return np.where(np.abs(x) < 1 / sigma**2, sigma**2 * x, np.sign(x))


def bottoms(number: int) -> list[Tensor]:
    return [draw(*SHAPE, seed=i).requires_grad_(i < 2) for i in range(number)]


@pytest.mark.parametrize("sigma", [1, 3])
@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize(("normalization", "divisor"), [("VALID", 3), ("NONE", 1)])
def test_smooth_l1(number: int, sigma: int, normalization: str, divisor: int) -> None:
    layer = make_layer(
        f"type: 'SmoothL1Loss' smooth_l1_loss_param {{ sigma: {sigma} }} "
        f"loss_param {{ normalization: {normalization} }}",
        *[SHAPE] * number,
    )
    given = bottoms(number)
    (loss,) = run(layer, *given)
    a, b, *weights = (bottom.detach().numpy() for bottom in given)
    inner, outer = (*weights, np.ones(SHAPE), np.ones(SHAPE))[:2]
    difference = inner * (a - b)
    expected = (outer * smooth_l1(difference, sigma)).sum() / divisor
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-12)
    loss.backward()
    gradient = outer * inner * slope(difference, sigma) / divisor
    assert given[0].grad is not None and given[1].grad is not None
    np.testing.assert_allclose(given[0].grad, gradient, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(given[1].grad, -gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize(
    ("settings", "divisor"),
    [
        ("", 6),
        ("normalization: FULL", 6),
        ("normalization: BATCH_SIZE", 3),
        ("normalize: false", 3),
        ("normalization: NONE", 1),
        ("normalization: PRE_FIXED pre_fixed_normalizer: 2.5", 2.5),
        ("normalization: PRE_FIXED pre_fixed_normalizer: 0.5", 1),
    ],
)
def test_smooth_l1_ohem(number: int, settings: str, divisor: float) -> None:
    layer = make_layer(
        f"type: 'SmoothL1LossOHEM' loss_param {{ {settings} }}", *[SHAPE] * number, tops=2
    )
    given = bottoms(number)
    loss, by_place = run(layer, *given)
    a, b, *weights = (bottom.detach().numpy() for bottom in given)
    weight = weights[0] if weights else np.ones(SHAPE)
    losses = smooth_l1(weight * (a - b))
    np.testing.assert_allclose(loss.detach(), losses.sum() / divisor, rtol=1e-12)
    np.testing.assert_allclose(by_place, losses.sum(1, keepdims=True), rtol=1e-12)
    assert not by_place.requires_grad
    loss.backward()
    gradient = weight * slope(weight * (a - b)) / divisor
    assert given[0].grad is not None
    np.testing.assert_allclose(given[0].grad, gradient, rtol=1e-12, atol=1e-15)


def test_gradients() -> None:
    first, second, weights = (draw(2, 4, seed=i) for i in range(3))
    for kind, number in (("SmoothL1Loss", 2), ("SmoothL1LossOHEM", 3)):
        layer = make_layer(f"type: '{kind}'", *[(2, 4)] * number)
        extra = [weights][: number - 2]
        assert torch.autograd.gradcheck(
            lambda a, b, layer=layer, extra=extra: layer(a, b, *extra),
            (first.requires_grad_(), second.requires_grad_()),
        )


def test_blobs_with_and_without_axes_at_the_end() -> None:
    layer = make_layer("type: 'SmoothL1LossOHEM'", (3, 8), (3, 8, 1, 1), tops=2)
    loss, by_place = run(layer, draw(3, 8), draw(3, 8, 1, 1, seed=1))
    assert by_place.shape == (3, 1, 1, 1)
    np.testing.assert_allclose(loss, by_place.sum() / 3, rtol=1e-12)


def test_what_is_refused() -> None:
    message = refused("type: 'SmoothL1Loss'", (3, 8), (3, 4))
    assert message.endswith("need the shape 3 x 8 of the first; number 2 has 3 x 4")
    text = "type: 'SmoothL1Loss' loss_param { normalization: FULL }"
    assert "loss_param.normalization: SmoothL1Loss divides by" in refused(text, (3, 8), (3, 8))
    text = "type: 'SmoothL1Loss' smooth_l1_loss_param { sigma: 0 }"
    assert "smooth_l1_loss_param.sigma: must be positive" in refused(text, (3, 8), (3, 8))
