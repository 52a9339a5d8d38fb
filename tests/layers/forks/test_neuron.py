"""ReLU6 against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.layers.harness import check_gradients, draw, gradient_of, make_layer, run


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
