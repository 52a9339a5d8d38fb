"""Normalize against its formula in numpy, and its gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.layers.harness import check_gradients, draw, make_layer, refused, run
from tests.oracle import assert_close


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 3)])
def test_normalize(across: bool, shared: bool, shape: tuple[int, ...]) -> None:
    settings = (
        f"across_spatial: {across} channel_shared: {shared} eps: 0.01 "
        "scale_filler { type: 'constant' value: 20 }"
    ).lower()
    layer = make_layer(f"type: 'Normalize' norm_param {{ {settings} }}", shape).double()
    (scale,) = layer.blobs
    assert scale.shape == (() if shared else (3,))
    assert bool((scale == 20).all())
    with torch.no_grad():
        scale.copy_(draw(*scale.shape, seed=3))
    bottom = draw(*shape)
    axes = tuple(range(1, len(shape))) if across else (1,)
    norms = np.sqrt((bottom.numpy() ** 2).sum(axes, keepdims=True) + 0.01)
    scales = scale.detach().numpy().reshape(-1, *[1] * (len(shape) - 2))
    assert_close(run(layer, bottom)[0], bottom.numpy() / norms * scales, "top")
    check_gradients(layer, bottom)


def test_the_scale_is_1_where_there_is_no_filler() -> None:
    layer = make_layer("type: 'Normalize'", (1, 2, 1, 1))
    top = run(layer, torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1))[0]
    assert_close(top.flatten(), np.array([0.6, 0.8]), "top")


def test_zeros_stay_zeros() -> None:
    bottom = torch.zeros(1, 2, 3, 3, requires_grad=True)
    top = run(
        make_layer("type: 'Normalize' norm_param { across_spatial: false }", (1, 2, 3, 3)), bottom
    )
    assert not top[0].any()
    top[0].sum().backward()
    assert bottom.grad is not None
    # 1 / sqrt(eps)
    assert_close(bottom.grad, np.full((1, 2, 3, 3), 1e5), "gradient")


def test_wrong_settings_are_named() -> None:
    assert "needs 2 to 4 axes, it has 1" in refused("type: 'Normalize'", (3,))
    wrong = refused("type: 'Normalize' norm_param { eps: -1 }", (3, 2))
    assert "norm_param.eps: is -1; at least 0 would be right" in wrong
