"""Nets of older forms in files: what they lack and where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.proto.upgrade import read_net


def test_an_input_that_a_layer_makes_needs_no_shape(tmp_path: Path) -> None:
    """As in cvjena's AlexNet: Caffe drops the field, and the layer is what is read."""
    layers = 'layer { type: "Input" top: "a" } layer { bottom: "a" top: "b" }'
    (tmp_path / "net.prototxt").write_text(f'input: "a" {layers}')
    made = read_net(tmp_path / "net.prototxt").message
    assert [layer.type for layer in made.layer] == ["Input", ""]


def test_v0_layers_have_their_line(tmp_path: Path) -> None:
    """Which a padding layer that goes and an Input layer that comes do not shift."""
    path = tmp_path / "net.prototxt"
    path.write_text(
        'input: "x" input_dim: [1, 1, 4, 4]\n'
        'layers { layer { name: "p" type: "padding" pad: 2 } bottom: "x" top: "padded" }\n'
        'layers { layer { name: "r" type: "relu" } bottom: "x" top: "x" }\n'
        'layers { layer { name: "c" type: "convv" } bottom: "x" top: "c" }\n'
    )
    with pytest.raises(CaffeError) as caught:
        read_net(path)
    assert str(caught.value) == (
        f"{path}:4: layer 'c': unknown V0 layer type 'convv' (did you mean 'conv'?)"
    )
