"""A small Faster R-CNN with Python layers as py-faster-rcnn has them: proposals and training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

import caffe_dns.pycaffe as caffe
from tests.nets import layer
from tests.oracle import assert_close

SCALES, STRIDE = (8, 16, 28), 8
HERE = "tests.pycaffe.region_layers"
SETTINGS = f"\"'feat_stride': {STRIDE}, 'scales': {list(SCALES)}\""


def python(name: str, kind: str, bottoms: str, tops: str, settings: str = '""') -> str:
    code = f"module: '{HERE}' layer: '{kind}' param_str: {settings}"
    return layer(name, "Python", bottoms, tops, f"python_param {{ {code} }}")


def conv(name: str, bottom: str, outputs: int, more: str = "kernel_size: 1") -> str:
    filler = "weight_filler { type: 'gaussian' std: 0.1 }"
    settings = f"convolution_param {{ num_output: {outputs} {more} {filler} }}"
    return layer(name, "Convolution", bottom, name, settings)


def reshaped(name: str, bottom: str, channels: int) -> str:
    shape = f"shape {{ dim: 0 dim: {channels} dim: -1 dim: 0 }}"
    return layer(name, "Reshape", bottom, name, f"reshape_param {{ {shape} }}")


def dense(name: str, bottom: str, outputs: int) -> str:
    filler = "weight_filler { type: 'gaussian' std: 0.01 }"
    return layer(
        name,
        "InnerProduct",
        bottom,
        name,
        f"inner_product_param {{ num_output: {outputs} {filler} }}",
    )


#: Maps of scores and codes, and the proposals that they tell.
MAPS = (
    conv("map", "data", 6, "kernel_size: 8 stride: 8")
    + layer("relu", "ReLU", "map", "map")
    + conv("scores", "map", 2 * len(SCALES))
    + conv("codes", "map", 4 * len(SCALES))
    + reshaped("pairs", "scores", 2)
)
REGIONS = layer("shares", "Softmax", "pairs", "shares") + reshaped(
    "scores_shares", "shares", 2 * len(SCALES)
)
TRAIN = (
    python("images", "Images", "", "data info objects", "\"'num_classes': 3\"")
    + MAPS
    + python(
        "anchors", "AnchorTargets", "scores objects info", "labels targets inside outside", SETTINGS
    )
    + layer(
        "region_loss",
        "SoftmaxWithLoss",
        "pairs labels",
        "region_loss",
        "propagate_down: true propagate_down: false "
        "loss_param { ignore_label: -1 normalize: true }",
    )
    + layer(
        "region_boxes",
        "SmoothL1Loss",
        "codes targets inside outside",
        "region_boxes",
        "loss_weight: 1 smooth_l1_loss_param { sigma: 3 }",
    )
    + REGIONS
    + python("proposals", "Proposals", "scores_shares codes info", "proposed", SETTINGS)
    + python(
        "targets", "ProposalTargets", "proposed objects", "rois label box_targets box_in box_out"
    )
    + layer(
        "pool",
        "ROIPooling",
        "map rois",
        "pool",
        f"roi_pooling_param {{ pooled_h: 2 pooled_w: 2 spatial_scale: {1 / STRIDE} }}",
    )
    + dense("class", "pool", 3)
    + dense("box", "pool", 12)
    + layer("class_loss", "SoftmaxWithLoss", "class label", "class_loss")
    + layer(
        "box_loss", "SmoothL1Loss", "box box_targets box_in box_out", "box_loss", "loss_weight: 1"
    )
)
TEST = (
    "layer { name: 'in' type: 'Input' top: 'data' top: 'info' input_param { "
    "shape { dim: 1 dim: 3 dim: 40 dim: 56 } shape { dim: 1 dim: 3 } } }"
    + MAPS
    + REGIONS
    + python("proposals", "Proposals", "scores_shares codes info", "rois shares_of", SETTINGS)
)


def pictures() -> list[tuple[np.ndarray, np.ndarray]]:
    """Two images of different sizes with two bright squares each, and where these are."""
    made = []
    for height, width, objects in (
        (40, 56, [[4, 5, 20, 19, 1], [30, 12, 51, 34, 2]]),
        (48, 40, [[6, 25, 33, 46, 2], [20, 2, 30, 12, 1]]),
    ):
        image = np.random.default_rng(height).standard_normal((3, height, width)) * 0.1
        for x1, y1, x2, y2, label in objects:
            image[label, y1 : y2 + 1, x1 : x2 + 1] += 1
        made.append((image, np.array(objects, np.float64)))
    return made


def proposals_by_hand(
    scores: np.ndarray, codes: np.ndarray, info: np.ndarray, looked_at: int, stay: int, most: float
) -> list[list[float]]:
    """Score and box of each proposal, written out place by place in float64."""
    found = []
    for row in range(scores.shape[1]):
        for column in range(scores.shape[2]):
            for index, scale in enumerate(SCALES):
                dx, dy, dw, dh = (float(value) for value in codes[4 * index :, row, column][:4])
                x = column * STRIDE + STRIDE / 2 + dx * scale
                y = row * STRIDE + STRIDE / 2 + dy * scale
                wide, high = scale * math.exp(dw) / 2, scale * math.exp(dh) / 2
                box = [x - wide, y - high, x + wide, y + high]
                box = [min(max(value, 0), info[1 - i % 2] - 1) for i, value in enumerate(box)]
                if min(box[2] - box[0], box[3] - box[1]) + 1 >= 4 * info[2]:
                    found.append([float(scores[len(SCALES) + index, row, column]), *box])
    found = sorted(found, key=lambda each: -each[0])[:looked_at]
    kept: list[list[float]] = []
    for each in found:
        if all(overlap(each[1:], other[1:]) <= most for other in kept):
            kept.append(each)
    return kept[:stay]


def overlap(one: list[float], other: list[float]) -> float:
    sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) + 1 for i in (0, 1)]
    common = max(sides[0], 0) * max(sides[1], 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return common / (sum(areas) - common)


def test_proposals() -> None:
    """With the limits of the TEST phase; how many there are differs from image to image."""
    Path("net.prototxt").write_text(TEST)
    caffe.set_random_seed(3)
    net = caffe.Net("net.prototxt", caffe.TEST)
    counts = []
    for image, _ in pictures():
        net.blobs["data"].reshape(1, *image.shape)
        net.blobs["data"].data[...] = image
        net.blobs["info"].data[...] = [*image.shape[1:], 1.5]
        net.forward()
        scores, codes = (net.blobs[name].data[0] for name in ("scores_shares", "codes"))
        info = net.blobs["info"].data[0].astype(np.float64)
        expected = np.array(proposals_by_hand(scores, codes, info, 30, 8, 0.5))
        assert_close(net.blobs["shares_of"].data[:, 0], expected[:, 0], "scores")
        assert_close(net.blobs["rois"].data[:, 1:], expected[:, 1:], "boxes")
        assert not net.blobs["rois"].data[:, 0].any()
        counts.append(len(expected))
    assert min(counts) > 1


def test_training() -> None:
    """On images from the program, all layers learn, and both classifiers get better."""
    Path("net.prototxt").write_text(TRAIN)
    Path("solver.prototxt").write_text(
        "train_net: 'net.prototxt' base_lr: 0.05 lr_policy: 'fixed' momentum: 0.9 iter_size: 2 "
        "snapshot: 0 snapshot_prefix: 'regions' display: 100 random_seed: 1"
    )
    caffe.set_random_seed(3)
    np.random.seed(1)
    solver = caffe.SGDSolver("solver.prototxt")
    before = {name: blobs[0].data.copy() for name, blobs in solver.net.params.items()}
    images: Any = solver.net.layers[0]
    images.set_images(pictures())
    losses = []
    for _ in range(12):
        solver.step(1)
        losses.append({name: float(solver.net.blobs[name].data) for name in solver.net.outputs})
    assert set(losses[0]) == {"region_loss", "region_boxes", "class_loss", "box_loss"}
    for name, blobs in solver.net.params.items():
        assert np.isfinite(blobs[0].data).all()
        assert not np.array_equal(blobs[0].data, before[name]), name
    for name in ("region_loss", "class_loss"):
        assert losses[-1][name] < 0.9 * losses[0][name], name
    assert solver.net.blobs["rois"].data.shape == (16, 5)
