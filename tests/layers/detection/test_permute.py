"""Permute against numpy's transpose."""

from __future__ import annotations

import numpy as np
import pytest

from tests.layers.harness import check_gradients, draw, make_layer, refused, run


@pytest.mark.parametrize(
    ("order", "axes"),
    [
        ([0, 2, 3, 1], (0, 2, 3, 1)),
        ([1], (1, 0, 2, 3)),
        ([3, 1], (3, 1, 0, 2)),
        ([], (0, 1, 2, 3)),
    ],
)
def test_permute(order: list[int], axes: tuple[int, ...]) -> None:
    settings = " ".join(f"order: {axis}" for axis in order)
    layer = make_layer(f"type: 'Permute' permute_param {{ {settings} }}", (2, 3, 4, 5))
    bottom = draw(2, 3, 4, 5)
    top = run(layer, bottom)[0]
    np.testing.assert_array_equal(top, bottom.numpy().transpose(axes))
    assert top.is_contiguous()
    check_gradients(layer, bottom)


def test_wrong_orders_are_named() -> None:
    wrong = "permute_param.order: 4 is not an axis of a blob with 4 axes"
    assert wrong in refused("type: 'Permute' permute_param { order: 4 }", (2, 3, 4, 5))
    twice = refused("type: 'Permute' permute_param { order: 1 order: 1 }", (2, 3, 4, 5))
    assert "permute_param.order: names an axis twice" in twice
