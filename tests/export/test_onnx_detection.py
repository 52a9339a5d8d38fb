"""Layers of SSD as ONNX against the net that they were made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns.export.onnx_file import to_onnx
from tests.export.build import random_inputs, small_model
from tests.export.test_onnx_file import assert_same, body, one

LAYERS = {
    "permute": one("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }"),
    "permute_batch": one("Permute", "permute_param { order: 3 }"),
    "normalize": one("Normalize"),
    "normalize_places": one(
        "Normalize", "norm_param { across_spatial: false channel_shared: false eps: 0.01 }"
    ),
    "prior_box": one("Pooling", "pooling_param { pool: MAX kernel_size: 3 stride: 2 }", "map")
    + 'layer { name: "boxes" type: "PriorBox" bottom: "map" bottom: "data" top: "boxes"'
    + " prior_box_param { min_size: 2 max_size: 4 aspect_ratio: 2 } }"
    + 'layer { name: "flat" type: "Flatten" bottom: "map" top: "flat" }',
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layer(name: str, tmp_path: Path) -> None:
    model, net = small_model(body(LAYERS[name]), tmp_path, batch=2)
    assert_same(to_onnx(model), net, random_inputs(net))
