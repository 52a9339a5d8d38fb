"""ReLU6, Mish, Insanity, SeLu, SeLuDropout and Sparsify against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.layers.harness import check_gradients, draw, gradient_of, make_layer, refused, run


@pytest.mark.parametrize("slope", [0, 0.25])
def test_relu6(slope: float) -> None:
    made = make_layer(f"type: 'ReLU6' relu6_param {{ negative_slope: {slope} }}", (4, 30))
    x = draw(4, 30) * 5
    values = x.numpy()
    expected = np.minimum(np.maximum(values, 0) + slope * np.minimum(values, 0), 6)
    np.testing.assert_array_equal(run(made, x)[0], expected)
    check_gradients(made, x)
    # At the kinks: the slope at 0, nothing at 6.
    kinks = make_layer(f"type: 'ReLU6' relu6_param {{ negative_slope: {slope} }}", (1, 3))
    assert gradient_of(kinks, [0, 6, 3]) == [slope, 0, 1]
    assert math.isnan(float(made(torch.tensor(math.nan))))


def test_mish() -> None:
    made = make_layer("type: 'Mish'", (4, 30))
    x = 5 * draw(4, 30)
    values = x.numpy()
    expected = values * np.tanh(np.log1p(np.exp(values)))
    np.testing.assert_allclose(run(made, x)[0], expected, rtol=1e-12)
    check_gradients(made, x)


@pytest.mark.parametrize("threshold", [0, 0.5])
def test_sparsify(threshold: float) -> None:
    """The gradient is not that of the top: the decay of the top's values comes in."""
    text = f"type: 'Sparsify' sparsify_param {{ thre: {threshold} coef: 0.25 }}"
    made = make_layer(text, (4, 30))
    x = draw(4, 30).requires_grad_()
    given = draw(4, 30, seed=1)
    top = made(x)
    values = x.detach().numpy()
    expected = np.sign(values) * np.maximum(np.abs(values) - threshold, 0)
    np.testing.assert_allclose(top.detach(), expected, rtol=1e-12)
    top.backward(given)
    gradient = given.numpy() + 0.25 * np.sign(expected)
    if threshold:
        gradient *= np.abs(values) > threshold
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, gradient, rtol=1e-12)
    assert "thre: must be at least 0" in refused(text.replace(str(threshold), "-1"), (4, 30))


def test_insanity() -> None:
    text = "type: 'Insanity' insanity_param { lb: 3 ub: 5 }"
    x = draw(40, 500)
    values = x.numpy()
    divisor = (5 - 3) / (math.log(5) - math.log(3))
    made = make_layer(text, (40, 500))
    expected = np.where(values > 0, values, values / divisor)
    np.testing.assert_allclose(run(made, x)[0], expected, rtol=1e-12)
    check_gradients(make_layer(text, (4, 30)), draw(4, 30))
    # While training, each entry has a divisor of its own, which the gradient has, too.
    made.train()
    leaf = x.clone().requires_grad_()
    tops = [made(leaf), made(leaf)]
    slopes = (tops[0] / leaf).detach().numpy()
    assert (slopes[values > 0] == 1).all()
    drawn = 1 / slopes[values < 0]
    assert drawn.min() > 3 and drawn.max() < 5
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [4, 2 / math.sqrt(12)], rtol=0.02)
    assert (tops[0] != tops[1])[x < 0].all()
    tops[0].sum().backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad, slopes, rtol=1e-12)
    # The same numbers in every run.
    np.testing.assert_array_equal(
        make_layer(text + " phase: TRAIN", (40, 500))(x), tops[0].detach()
    )


def normal(*shape: int) -> torch.Tensor:
    """Numbers of mean 0 and variance 1."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_selu() -> None:
    made = make_layer("type: 'SeLu' selu_param { lambda: 1.5 alpha: 2 }", (4, 30))
    x = draw(4, 30)
    values = x.numpy()
    expected = np.where(values > 0, 1.5 * values, 3 * np.expm1(values))
    np.testing.assert_allclose(run(made, x)[0], expected, rtol=1e-12)
    check_gradients(made, x)
    # The usual numbers keep mean 0 and variance 1.
    usual = make_layer("type: 'SeLu'", (400, 500))(normal(400, 500))
    np.testing.assert_allclose([usual.mean(), usual.var()], [0, 1], atol=0.02)


def test_selu_dropout() -> None:
    text = "type: 'SeLuDropout' selu_dropout_param { dropout_ratio: 0.25 alpha: -2 }"
    x = normal(40, 500)
    made = make_layer(text, (40, 500))
    np.testing.assert_array_equal(run(made, x)[0], x)
    made.train()
    leaf = x.clone().requires_grad_()
    tops = [made(leaf), made(leaf)]
    # Of mean 0 and variance 1 again: 0.75 (1 + 4) - (0.25 * 2)^2 without the factor, which is:
    factor = (0.75 * (1 + 0.25 * 4)) ** -0.5
    kept = np.isclose(tops[0].detach(), factor * (x.numpy() + 0.5))
    assert abs(kept.mean() - 0.75) < 0.01
    np.testing.assert_allclose(tops[0].detach()[~kept], factor * (0.5 - 2), rtol=1e-12)
    np.testing.assert_allclose([tops[0].mean().item(), tops[0].var().item()], [0, 1], atol=0.02)
    assert (tops[0] != tops[1]).any()
    tops[0].sum().backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad, factor * kept, rtol=1e-12)
    for ratio in (0, 1):
        wrong = text.replace("0.25", str(ratio))
        assert f"dropout_ratio: is {ratio}; more than 0 and below 1" in refused(wrong, (4, 30))


@pytest.mark.parametrize(("low", "high"), [(3, 3), (5, 3), (0, 3), (-3, 0), (-3, 3)])
def test_divisors_of_no_range(low: float, high: float) -> None:
    text = f"type: 'Insanity' insanity_param {{ lb: {low} ub: {high} }}"
    assert f"insanity_param.ub: is {high}; more than lb = {low}" in refused(text, (4, 30))
    assert "at least 2 axes" in refused("type: 'Insanity'", (4,))


def test_divisors_of_a_range_that_float32_has_no_number_for() -> None:
    text = "type: 'Insanity' insanity_param { lb: -2e38 ub: 3e38 }"
    assert "insanity_param.ub: is 3e+38, too far from lb = -2e+38" in refused(text, (4, 30))
