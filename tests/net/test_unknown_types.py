"""All layer types of a net that are not there, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns import load_net
from caffe_dns.errors import CaffeError
from tests.nets import refused

LAYERS = """layer { name: "a" type: "Input" top: "a" input_param { shape { dim: 1 } } }
layer { name: "b" type: "DenseCRF" top: "b" include { phase: TRAIN } }
layer { name: "b"
  type: "InerProduct" bottom: "a" top: "b" include { phase: TEST } }
layer { name: "c" type: "DetectionGroupLoss" bottom: "b" top: "c" }
layer { name: "d" type: "DetectionGroupLoss" bottom: "b" top: "d" }
layer { name: "e" type: "Teleporter" bottom: "b" top: "e" }
"""


def test_all_are_named_with_their_forks_and_places(tmp_path: Path) -> None:
    file = tmp_path / "net.prototxt"
    file.write_text(LAYERS)
    with pytest.raises(CaffeError) as caught:
        load_net(file)
    assert str(caught.value) == (
        f"{file}:4: layer 'b': unknown layer type 'InerProduct' (column 3) "
        "(did you mean 'InnerProduct'?); also unknown: 'DetectionGroupLoss' (line 5, MS-CNN), "
        "'Teleporter' (line 7)"
    )


def test_the_fork_is_named_and_nothing_far_is_proposed() -> None:
    assert refused(LAYERS) == (
        "layer 'b': 'DenseCRF' is a layer type of DeepLab, which dns lacks; without it, the "
        "net gives the scores that it refines; also unknown: 'DetectionGroupLoss' (MS-CNN), "
        "'Teleporter'"
    )
    assert refused('layer { name: "x" type: "Teleporter" top: "x" }') == (
        "layer 'x': unknown layer type 'Teleporter'"
    )


def test_a_layer_without_a_type_is_told_so() -> None:
    assert refused('layer { name: "a" top: "a" }') == "layer 'a': the layer has no type"
