"""Layers of SSD as ONNX against the net that they were made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from caffe_dns import load_net
from caffe_dns.errors import CaffeError
from caffe_dns.export.deploy import deploy
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.onnx_file import to_onnx
from caffe_dns.proto.upgrade import read_net
from caffe_dns.weights import save_weights
from tests.export.build import random_inputs, small_model
from tests.export.test_onnx_file import assert_same, body, one, run_onnx
from tests.layers.detection.test_boxes import draw_boxes
from tests.nets import input_layer, layer
from tests.shapes import MODEL
from tests.test_models import randomise

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


PRIORS, CLASSES = 30, 4
DETECTIONS = {
    "all": "",
    "corner": "code_type: CORNER",
    "corner_size": "code_type: CORNER_SIZE confidence_threshold: 0.2",
    "in_target": "variance_encoded_in_target: true",
    "few": "nms_param { top_k: 7 nms_threshold: 0.4 } keep_top_k: 5 confidence_threshold: 0.1",
    "background": "background_label_id: 2 keep_top_k: 9",
    "no_background": "background_label_id: -1 confidence_threshold: 0.3",
    "own_boxes": "share_location: false keep_top_k: 11",
}


def detector(settings: str, classes: int = CLASSES) -> str:
    """DetectionOutput on inputs."""
    locations = PRIORS * 4 * (classes if "share_location: false" in settings else 1)
    code = "" if "code_type" in settings else "code_type: CENTER_SIZE"
    nms = "" if "nms_param" in settings else "nms_param { nms_threshold: 0.3 }"
    shapes = {
        "loc": (1, locations),
        "conf": (1, PRIORS * classes),
        "priors": (1, 2, PRIORS * 4),
    }
    options = f"detection_output_param {{ num_classes: {classes} {code} {nms} {settings} }}"
    return input_layer(**shapes) + layer(
        "out", "DetectionOutput", "loc conf priors", "out", options
    )


def predictions(settings: str, images: int) -> dict[str, Tensor]:
    """Locations, scores of which some are equal, and prior boxes."""
    generator = torch.Generator().manual_seed(5)
    boxes = CLASSES if "share_location: false" in settings else 1
    codes = torch.randn(images, PRIORS * boxes * 4, generator=generator) * 0.5
    scores = torch.randn(images, PRIORS, CLASSES, generator=generator).softmax(-1)
    scores = (scores * 20).round() / 20
    priors = torch.stack([draw_boxes(PRIORS).flatten(), draw_boxes(PRIORS, seed=1).flatten()])
    return {"loc": codes, "conf": scores.flatten(1), "priors": priors[None].float()}


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("name", sorted(DETECTIONS))
def test_detection_output(name: str, images: int, tmp_path: Path) -> None:
    """The rows, and their order, in batches of any size."""
    model, net = small_model(detector(DETECTIONS[name]), tmp_path)
    inputs = predictions(DETECTIONS[name], images)
    assert net(inputs)["out"].shape[2] > 3
    assert_same(to_onnx(model), net, inputs)


def test_a_whole_detector(tmp_path: Path) -> None:
    """From pixels to boxes, in a batch of a size that the definition does not say."""
    weights = tmp_path / "net.caffemodel"
    net = load_net(MODEL / "deploy.prototxt", surgery=False)
    randomise(net)
    save_weights(net, weights)
    described = deploy(read_net(MODEL / "deploy.prototxt").message)
    raw = to_onnx(UnmaskedModel.load(described, str(weights)))
    assert_same(raw, net, random_inputs(net, batch=3))


def test_images_without_a_box_have_no_row(tmp_path: Path) -> None:
    settings = "confidence_threshold: 2"
    model, _ = small_model(detector(settings), tmp_path)
    found = run_onnx(to_onnx(model), predictions(settings, images=2))
    assert found["out"].shape == (1, 1, 0, 7)


def test_a_threshold_that_adapts_has_no_form_in_onnx(tmp_path: Path) -> None:
    model, _ = small_model(detector("nms_param { eta: 0.9 }"), tmp_path)
    with pytest.raises(CaffeError, match=r"a threshold that adapts \(nms_param.eta\) cannot be"):
        to_onnx(model)
