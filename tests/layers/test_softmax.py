"""Softmax against recorded cases and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from tests.layers.build import make_layer
from tests.oracle import run_layer_case


@pytest.mark.parametrize("name", ["softmax", "softmax_axis"])
def test_golden(name: str) -> None:
    run_layer_case(name)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_probabilities_along_any_axis(axis: int) -> None:
    layer = make_layer(f'type: "Softmax" top: "t" softmax_param {{ axis: {axis} }}', (2, 3, 4))
    bottom = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    top = layer(bottom)
    powers = np.exp(bottom.numpy())
    np.testing.assert_allclose(top, powers / powers.sum(axis, keepdims=True), rtol=1e-12)
    assert torch.autograd.gradcheck(layer, bottom.requires_grad_())


def test_large_scores_do_not_overflow() -> None:
    layer = make_layer('type: "Softmax" top: "t"', (1, 3))
    np.testing.assert_array_equal(layer(torch.tensor([[1e4, 0.0, 1e4]])), [[0.5, 0, 0.5]])


def test_an_axis_that_is_not_there_is_named() -> None:
    with pytest.raises(CaffeError, match=r"layer 'layer': softmax_param.axis: axis 3 is out of"):
        make_layer('type: "Softmax" top: "t" softmax_param { axis: 3 }', (2, 3, 4))
