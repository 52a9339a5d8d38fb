"""What YOLO's nets see, against the rules written out box by box, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from torch import Tensor

from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.forks import renumber_layers
from tests.layers.detection.reference import overlap
from tests.layers.harness import draw, make_layer, refused
from tests.nets import recorded_log

CLASSES, BOXES, IMAGES = 3, 2, 2
ANCHORS = [(1.5, 2.0), (3.0, 1.0), (0.5, 0.75), (2.5, 2.5)]
NMS = 0.4

Row = tuple[float, ...]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def box_of(values: list[float], x: int, y: int, width: int, height: int, anchor: Row) -> Row:
    """The corners; `anchor` is in shares of the image."""
    middle = (x + sigmoid(values[0])) / width, (y + sigmoid(values[1])) / height
    half = [math.exp(values[2 + i]) * anchor[i] / 2 for i in (0, 1)]
    return (*(middle[i] - half[i] for i in (0, 1)), *(middle[i] + half[i] for i in (0, 1)))


def cells(bottom: Tensor, length: int) -> Iterator[tuple[int, int, int, list[float]]]:
    """Column, row, box and values of each box of each cell of each image."""
    num, _, height, width = bottom.shape
    for image in range(num):
        for y in range(height):
            for x in range(width):
                for box in range(BOXES):
                    values = bottom[image, box * length : (box + 1) * length, y, x]
                    yield x, y, box, values.tolist()


def after_suppression(rows: list[Row]) -> np.ndarray:
    rows = sorted(rows, key=lambda row: -row[2])
    kept: list[Row] = []
    for row in rows:
        if all(overlap(row[3:], other[3:]) < NMS for other in kept):
            kept.append(row)
    return np.array(kept).reshape(1, 1, -1, 7)


def test_yolo_2() -> None:
    anchors = " ".join(f"biases: {value}" for pair in ANCHORS[:BOXES] for value in pair)
    bottoms = [draw(IMAGES, BOXES * (5 + CLASSES), side, side, seed=side) for side in (3, 4)]
    made = make_layer(
        f"type: 'YoloDetectionOutput' yolo_detection_output_param {{ num_classes: {CLASSES} "
        f"num_box: {BOXES} {anchors} confidence_threshold: 0.3 nms_threshold: {NMS} }}",
        *(tuple(bottom.shape) for bottom in bottoms),
    )
    rows: list[Row] = []
    for bottom in bottoms:
        side = bottom.shape[3]
        for x, y, box, values in cells(bottom, 5 + CLASSES):
            powers = [math.exp(value) for value in values[5:]]
            label = powers.index(max(powers))
            score = powers[label] / sum(powers) * sigmoid(values[4])
            if score >= np.float32(0.3):
                anchor = tuple(value / side for value in ANCHORS[box])
                corners = box_of(values[:4], x, y, side, side, anchor)
                rows.append((0, label + 1, score, *corners))
    expected = after_suppression(rows)
    assert 3 < expected.shape[2] < len(rows)
    np.testing.assert_allclose(made(*bottoms), expected, rtol=1e-6)


@pytest.mark.parametrize("gaussian", [False, True])
def test_yolo_3(gaussian: bool) -> None:
    anchors = " ".join(f"biases: {20 * value}" for pair in ANCHORS for value in pair)
    length = (9 if gaussian else 5) + CLASSES
    sizes, scales, masks = [(3, 4), (2, 2)], [16, 32], [[2, 0], [3, 1]]
    bottoms = [draw(IMAGES, BOXES * length, *size, seed=i) * 2 for i, size in enumerate(sizes)]
    made = make_layer(
        f"type: 'Yolov3DetectionOutput' yolov3_detection_output_param {{ num_classes: {CLASSES} "
        f"num_box: {BOXES} {anchors} confidence_threshold: 0.4 nms_threshold: {NMS} mask: "
        f"[2, 0, 3, 1] anchors_scale: [16, 32] gaussian_box: {str(gaussian).lower()} }}",
        *(tuple(bottom.shape) for bottom in bottoms),
    )
    rows: list[Row] = []
    for bottom, (height, width), scale, mask in zip(bottoms, sizes, scales, masks, strict=True):
        for x, y, box, values in cells(bottom, length):
            score = sigmoid(values[length - CLASSES - 1])
            if gaussian:
                score *= (4 - sum(sigmoid(value) for value in values[1:8:2])) / 4
                values = values[0:8:2] + values[8:]
            pair = ANCHORS[mask[box]]
            anchor = 20 * pair[0] / (width * scale), 20 * pair[1] / (height * scale)
            corners = box_of(values[:4], x, y, width, height, anchor)
            for label, value in enumerate(values[5:], 1):
                if sigmoid(value) * score > np.float32(0.4):
                    rows.append((0, label, sigmoid(value) * score, *corners))
    expected = after_suppression(rows)
    assert 3 < expected.shape[2] < len(rows)
    np.testing.assert_allclose(made(*bottoms), expected, rtol=1e-6)


def test_nothing_is_seen() -> None:
    made = make_layer(
        "type: 'YoloDetectionOutput' yolo_detection_output_param { num_classes: 1 num_box: 1 "
        "biases: [1, 1] confidence_threshold: 2 }",
        (2, 6, 1, 1),
    )
    with recorded_log() as messages:
        top = made(draw(2, 6, 1, 1))
    assert messages == ["Couldn't find any detections"]
    assert top.tolist() == [[[[0] + [-1] * 6, [1] + [-1] * 6]]]


def test_what_does_not_fit() -> None:
    plain = (
        "type: 'YoloDetectionOutput' yolo_detection_output_param { num_classes: 1 num_box: 1 %s }"
    )
    assert "6 x H x W would be right for 1 boxes of 1 classes" in refused(plain % "", (1, 5, 2, 2))
    assert "biases: has 0 pairs for 1 boxes" in refused(plain % "", (1, 6, 2, 2))
    assert "biases: has 3 values, not pairs" in refused(plain % "biases: [1, 2, 3]", (1, 6, 2, 2))
    assert "2 x 3; it has to be square" in refused(plain % "biases: [1, 2]", (1, 6, 2, 3))
    assert "num_classes: must be given" in refused("type: 'YoloDetectionOutput'", (1, 6, 2, 2))
    assert "num_classes: must be positive" in refused(
        "type: 'YoloDetectionOutput' yolo_detection_output_param { num_classes: 0 num_box: 1 "
        "biases: [1, 2] }",
        (1, 5, 2, 2),
    )
    assert "num_box: must be positive" in refused(
        "type: 'Yolov3DetectionOutput' yolov3_detection_output_param { num_classes: 1 num_box: 0 "
        "biases: [1, 2] mask: 0 mask_group_num: 1 anchors_scale: 8 }",
        (1, 6, 2, 2),
    )
    third = (
        "type: 'Yolov3DetectionOutput' yolov3_detection_output_param { num_classes: 1 num_box: 1 "
        "biases: [1, 2] anchors_scale: 8 %s }"
    )
    assert "mask_group_num: is 2 for 1 bottoms" in refused(third % "", (1, 6, 2, 2))
    for mask in ("", "mask: 1"):
        message = refused(third % f"mask_group_num: 1 {mask}", (1, 6, 2, 2))
        assert "does not give 1 of 1 anchors for bottom 0" in message


@pytest.mark.parametrize(
    ("kind", "number"), [("YoloDetectionOutput", 601), ("Yolov3DetectionOutput", 602)]
)
def test_numbers_of_the_fork(kind: str, number: int) -> None:
    """Length-delimited fields: LayerParameter.type 2, the settings by the fork's number."""
    settings = b"\x35\x00\x00\x00\x3f" if number == 601 else b"\x25\x00\x00\x00\x3f"
    tag = (number << 3) | 2
    layer = b"\x12" + bytes([len(kind)]) + kind.encode()
    layer += bytes([tag & 127 | 128, tag >> 7, len(settings)]) + settings
    net = NetParameter.FromString(renumber_layers(b"\xa2\x06" + bytes([len(layer)]) + layer))
    param = net.layer[0]
    found = {
        601: param.yolo_detection_output_param.nms_threshold,
        602: param.yolov3_detection_output_param.nms_threshold,
    }
    assert found[number] == 0.5
