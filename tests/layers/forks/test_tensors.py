"""Synopsys' layers for operators of TensorFlow and ONNX, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.layers.harness import check_gradients, draw, make_layer, refused, run


@pytest.mark.parametrize(
    ("settings", "shape", "top"),
    [
        ("axis: 1", (2, 1, 3, 1), (2, 3, 1)),
        ("axis: [-1, 1]", (2, 1, 3, 1), (2, 3)),
        ("", (1, 4, 1, 1), (4,)),
        ("", (2, 3), (2, 3)),
    ],
)
def test_squeeze(settings: str, shape: tuple[int, ...], top: tuple[int, ...]) -> None:
    made = make_layer(f"type: 'Squeeze' squeeze_param {{ {settings} }}", shape)
    x = draw(*shape)
    np.testing.assert_array_equal(run(made, x)[0], x.numpy().reshape(top))
    check_gradients(made, x)


def test_what_squeeze_refuses() -> None:
    text = "type: 'Squeeze' squeeze_param {{ axis: {} }}"
    assert "axis 1 of (2, 3, 1) has an extent of 3" in refused(text.format(1), (2, 3, 1))
    assert "axis 3 is out of range" in refused(text.format(3), (2, 3, 1))
