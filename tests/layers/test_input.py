"""Input: shapes for the net to fill."""

from __future__ import annotations

import pytest

from caffe_dns.layers.input import Input
from tests.layers.harness import make_layer, refused

ONE, TWO = "shape { dim: 2 dim: 3 }", "shape { dim: 4 }"


def input_layer(shapes: str, tops: int) -> Input:
    layer = make_layer(f"type: 'Input' input_param {{ {shapes} }}", tops=tops)
    assert isinstance(layer, Input)
    return layer


def test_shapes() -> None:
    assert input_layer(ONE, 1).shapes == [(2, 3)]
    assert input_layer(ONE, 3).shapes == [(2, 3)] * 3
    assert input_layer(ONE + TWO, 2).shapes == [(2, 3), (4,)]
    assert input_layer("", 2).shapes == [(), ()]
    with pytest.raises(RuntimeError, match="the caller of the net gives the inputs"):
        input_layer(ONE, 1).forward()


def test_wrong_shapes() -> None:
    text = f"type: 'Input' input_param {{ {ONE} {TWO} }}"
    assert "input_param.shape: is given 2 times for 3 tops" in refused(text, tops=3)
    assert "negative extent" in refused("type: 'Input' input_param { shape { dim: -1 } }")
