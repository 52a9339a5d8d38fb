"""DetectionEvaluate on boxes whose rows can be told by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from tests.layers.harness import make_layer, refused

#: image, label, number, box, difficult
OBJECTS: list[list[float]] = [
    [0, 1, 0, 0.1, 0.1, 0.5, 0.5, 0],
    [0, 1, 1, 0.5, 0.5, 0.9, 0.9, 1],
    [0, 2, 0, 0.0, 0.0, 0.4, 0.4, 0],
    [2, 1, 0, 0.2, 0.2, 0.6, 0.6, 0],
    [-1] * 8,
]
#: image, label, score, box
FOUND: list[list[float]] = [
    [0, 1, 0.6, 0.1, 0.1, 0.5, 0.45],  # the first object again, with a lower score
    [0, 1, 0.9, 0.12, 0.1, 0.5, 0.5],  # the first object
    [0, 1, 0.8, 0.5, 0.52, 0.9, 0.9],  # the difficult one
    [0, 1, 0.7, 0.3, 0.3, 0.7, 0.7],  # between them
    [0, 2, 0.5, 0.2, 0.2, 0.8, 0.8],  # too far off
    [0, 3, 0.4, 0.1, 0.1, 0.5, 0.5],  # no object of this class
    [1, -1, -1, -1, -1, -1, -1],  # nothing found in this image
    [2, 1, 0.3, 0.2, 0.2, 0.6, 0.6],
]


def evaluate(settings: str, found: list[list[float]], objects: list[list[float]]) -> Tensor:
    bottoms = [torch.tensor(rows)[None, None] for rows in (found, objects)]
    layer = make_layer(
        f"type: 'DetectionEvaluate' detection_evaluate_param {{ {settings} }}",
        *[tuple(bottom.shape) for bottom in bottoms],
    )
    top = layer(*bottoms)
    assert isinstance(top, Tensor)
    return top


def test_rows() -> None:
    top = evaluate("num_classes: 4", FOUND, OBJECTS)
    expected: list[list[float]] = [
        [-1, 1, 3, -1, -1],
        [-1, 2, 1, -1, -1],
        [-1, 3, 0, -1, -1],
        [0, 1, 0.9, 1, 0],
        [0, 1, 0.8, 1, 0],
        [0, 1, 0.7, 0, 1],
        [0, 1, 0.6, 0, 1],
        [0, 2, 0.5, 0, 1],
        [0, 3, 0.4, 0, 1],
        [2, 1, 0.3, 1, 0],
    ]
    np.testing.assert_allclose(top[0, 0], expected, rtol=1e-6)


def test_difficult_objects_may_be_left_out() -> None:
    top = evaluate("num_classes: 4 evaluate_difficult_gt: false", FOUND, OBJECTS)
    assert top[0, 0, 0].tolist() == [-1, 1, 2, -1, -1]
    assert top[0, 0, 4, 3:].tolist() == [0, 0]


def test_the_overlap_that_is_enough() -> None:
    def rights(threshold: float) -> int:
        settings = f"num_classes: 4 overlap_threshold: {threshold}"
        return int((evaluate(settings, FOUND, OBJECTS)[0, 0, :, 3] == 1).sum())

    # 0.95, 0.95 and 1, and for class 2 0.2^2 / (0.4^2 + 0.6^2 - 0.2^2) = 1/12.
    assert [rights(threshold) for threshold in (0.96, 0.9, 0.1, 0.08)] == [1, 3, 3, 4]


def test_another_background() -> None:
    top = evaluate("num_classes: 4 background_label_id: 0", FOUND, OBJECTS)
    assert top[0, 0, :3, 1].tolist() == [1, 2, 3]
    no_background = evaluate("num_classes: 3 background_label_id: 5", FOUND[:5], OBJECTS)
    assert no_background[0, 0, :3, 1].tolist() == [0, 1, 2]


def test_boxes_in_pixels(tmp_path: Path) -> None:
    """Boxes of a pixel that touch have half of their pixels in common, though no area."""
    sizes = tmp_path / "sizes.txt"
    sizes.write_text("a 10 10\nb 100 100\nc 10 10\n")
    objects: list[list[float]] = [
        [0, 1, 0, 0.1, 0.1, 0.2, 0.2, 0],
        [1, 1, 0, 0.1, 0.1, 0.2, 0.2, 0],
    ]
    found: list[list[float]] = [[0, 1, 0.9, 0.1, 0.1, 0.2, 0.1], [1, 1, 0.9, 0.1, 0.1, 0.2, 0.1]]
    bottoms = [torch.tensor(rows)[None, None] for rows in (found, objects)]
    settings = f"num_classes: 2 name_size_file: '{sizes}'"
    layer = make_layer(
        f"type: 'DetectionEvaluate' detection_evaluate_param {{ {settings} }}",
        *[tuple(bottom.shape) for bottom in bottoms],
    )
    # 2 x 1 of 2 x 2 pixels, 11 x 1 of 11 x 11; then c, and a again.
    assert layer(*bottoms)[0, 0, 1:, 3].tolist() == [1, 0]
    assert layer(*bottoms)[0, 0, 1:, 3].tolist() == [1, 1]
    assert evaluate("num_classes: 2", found, objects)[0, 0, 1:, 3].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "num_classes: must be given, and be positive"),
        ("num_classes: 2 overlap_threshold: 0", "overlap_threshold: is 0; more than 0"),
        ("num_classes: 2 resize_param { width: 3 }", "resize_param: needs a height and a width"),
    ],
)
def test_wrong_settings_are_named(settings: str, message: str) -> None:
    definition = f"type: 'DetectionEvaluate' detection_evaluate_param {{ {settings} }}"
    assert message in refused(definition, (1, 1, 3, 7), (1, 1, 2, 8))


def test_wrong_shapes_and_labels_are_named() -> None:
    definition = "type: 'DetectionEvaluate' detection_evaluate_param { num_classes: 4 }"
    assert "the boxes are 1 x 1 x N x 7" in refused(definition, (1, 1, 3, 6), (1, 1, 2, 8))
    assert "the objects are 1 x 1 x N x 8" in refused(definition, (1, 1, 3, 7), (2, 1, 2, 8))
    with pytest.raises(CaffeError, match="an object has the background's label 2"):
        evaluate("num_classes: 4 background_label_id: 2", FOUND[:4], OBJECTS)
