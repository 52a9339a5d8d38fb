"""Shapes that no blob can have are refused before memory is asked for (blob.hpp, blob.cpp)."""

from __future__ import annotations

import pytest

from tests.layers.harness import refused

SHAPE = (1, 3, 8, 8)
CONVOLUTION = "type: 'Convolution' convolution_param { num_output: "
POOLING = "type: 'Pooling' pooling_param { kernel_size: "
ONES, NINES = "dim: 1 " * 33, "dim: 9 " * 33


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            CONVOLUTION + "4294967295 kernel_size: 1 }",
            "be of 4294967295x3x1x1 numbers",
        ),
        (CONVOLUTION + "1 kernel_size: 99999 pad: 49999 }", "1x3x99999x99999 numbers; 2147483647"),
        (CONVOLUTION + "1 kernel_size: 1 pad: 999999999 stride: 9999999 }", "the padded bottom"),
        (CONVOLUTION + "1 kernel_size: 1 stride: 4294967295 }", "must be at most 2147483647"),
        (POOLING + "4294967295 }", "must be at most 2147483647"),
        (POOLING + "2147483647 }", "does not fit"),
        (POOLING + "2 stride: 2147483647 }", "the padded bottom would be of 1x3x"),
        ("type: 'Tile' tile_param { tiles: 2147483647 }", "2147483647 are the most"),
        (f"type: 'Reshape' reshape_param {{ shape {{ {ONES} dim: -1 }} }}", "34 axes; 32 are"),
        (f"type: 'DummyData' dummy_data_param {{ shape {{ {NINES} }} }}", "33 axes; 32 are"),
    ],
)
def test_absurd_shapes(text: str, said: str) -> None:
    shapes = [] if "DummyData" in text else [SHAPE]
    message = refused(text, *shapes)
    assert said in message
    assert message.startswith("layer 'layer'")
