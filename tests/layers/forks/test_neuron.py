"""ReLU6 against its formula."""

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
