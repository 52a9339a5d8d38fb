"""DetectionOutput against SSD's rules written out box by box, in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import PriorBoxParameter
from tests.layers.detection import reference
from tests.layers.detection.test_boxes import draw_boxes
from tests.layers.harness import make_layer, refused
from tests.nets import recorded_log

PRIORS, CLASSES, IMAGES = 30, 4, 3


def bottoms(box_classes: int = 1) -> list[Tensor]:
    """Locations, scores and priors; some scores are equal."""
    generator = torch.Generator().manual_seed(5)
    codes = torch.randn(IMAGES, PRIORS * box_classes * 4, generator=generator).double() * 0.5
    scores = torch.randn(IMAGES, PRIORS, CLASSES, generator=generator).double().softmax(-1)
    scores = (scores * 20).round() / 20
    priors = torch.stack([draw_boxes(PRIORS).flatten(), draw_boxes(PRIORS, seed=1).flatten()])
    return [codes, scores.flatten(1), priors.unsqueeze(0)]


def expected_rows(
    values: list[Tensor],
    kind: str,
    box_classes: int = 1,
    background: int = 0,
    keep: int = -1,
    threshold: float = 0.3,
    in_target: bool = False,
    **nms: float,
) -> np.ndarray:
    codes = values[0].view(IMAGES, PRIORS, box_classes, 4).tolist()
    scores = values[1].view(IMAGES, PRIORS, CLASSES).tolist()
    priors, variances = values[2].view(2, PRIORS, 4).tolist()
    rows = []
    for image in range(IMAGES):
        found = []
        for label in range(CLASSES):
            if label == background:
                continue
            boxes = [
                reference.decode(
                    kind,
                    codes[image][i][label if box_classes > 1 else 0],
                    priors[i],
                    [1] * 4 if in_target else variances[i],
                )
                for i in range(PRIORS)
            ]
            its = [scores[image][i][label] for i in range(PRIORS)]
            for i in reference.suppress(boxes, its, threshold, **nms):  # type: ignore[arg-type]
                found.append([image, label, its[i], *boxes[i]])
        if -1 < keep < len(found):
            found = sorted(sorted(found, key=lambda row: -row[2])[:keep], key=lambda row: row[1])
        rows += found
    return np.array(rows)


def detect(settings: str, values: list[Tensor]) -> np.ndarray:
    definition = f"type: 'DetectionOutput' detection_output_param {{ {settings} }}"
    layer = make_layer(definition, *[tuple(value.shape) for value in values])
    top = layer(*values)
    assert isinstance(top, Tensor)
    assert not top.requires_grad
    assert top.shape[:2] == (1, 1) and top.shape[3] == 7
    return top[0, 0].numpy()


@pytest.mark.parametrize("kind", list(PriorBoxParameter.CodeType.keys()))
@pytest.mark.parametrize("in_target", [True, False])
def test_codes(kind: str, in_target: bool) -> None:
    values = bottoms()
    rows = detect(
        f"num_classes: {CLASSES} code_type: {kind} "
        f"variance_encoded_in_target: {str(in_target).lower()}",
        values,
    )
    np.testing.assert_allclose(rows, expected_rows(values, kind, in_target=in_target), rtol=1e-12)
    assert len(rows) < IMAGES * PRIORS * (CLASSES - 1)


def test_thresholds_and_numbers_kept() -> None:
    values = bottoms()
    rows = detect(
        f"num_classes: {CLASSES} confidence_threshold: 0.15 keep_top_k: 7 "
        "nms_param { nms_threshold: 0.8 top_k: 12 eta: 0.9 }",
        values,
    )
    nms = {"least": np.float32(0.15), "top_k": 12, "eta": np.float32(0.9)}
    expected = expected_rows(values, "CORNER", keep=7, threshold=float(np.float32(0.8)), **nms)
    np.testing.assert_allclose(rows, expected, rtol=1e-12)
    assert np.bincount(rows[:, 0].astype(int)).tolist() == [7, 7, 7]


@pytest.mark.parametrize("background", [-1, 2])
def test_boxes_of_their_own_for_each_class(background: int) -> None:
    values = bottoms(CLASSES)
    rows = detect(
        f"num_classes: {CLASSES} share_location: false background_label_id: {background} "
        "code_type: CENTER_SIZE",
        values,
    )
    expected = expected_rows(values, "CENTER_SIZE", CLASSES, background)
    np.testing.assert_allclose(rows, expected, rtol=1e-12)
    assert set(rows[:, 1]) == set(range(CLASSES)) - {background}


def test_without_any_box_each_image_has_a_row() -> None:
    with recorded_log() as messages:
        rows = detect(f"num_classes: {CLASSES} confidence_threshold: 2", bottoms())
    assert messages[-1] == "Couldn't find any detections"
    np.testing.assert_array_equal(rows, [[i, *[-1] * 6] for i in range(IMAGES)])


# Files ------------------------------------------------------------------------------------------


def save_settings(tmp_path: Path, style: str, more: str = "") -> str:
    labels = "".join(
        f"item {{ name: '{name}' label: {label} display_name: '{name}' }}\n"
        for label, name in enumerate(["none", "cat", "7", "dog"])
    )
    (tmp_path / "labels.prototxt").write_text(labels)
    (tmp_path / "names.txt").write_text("".join(f"0{i} {50 + i} {100 + i}\n" for i in range(6)))
    return (
        f"num_classes: {CLASSES} keep_top_k: 3 code_type: CENTER_SIZE save_output_param {{ "
        f"output_directory: '{tmp_path}/out/deep' output_name_prefix: 'p_' output_format: '{style}'"
        f" label_map_file: '{tmp_path}/labels.prototxt' name_size_file: '{tmp_path}/names.txt' "
        f"{more} }}"
    )


def saved_boxes(rows: np.ndarray, first: int) -> list[tuple[int, int, float, list[float]]]:
    """Image in the list, label, score, and xmin, ymin, width and height to the hundredth."""
    result = []
    for image, label, score, *box in rows.tolist():
        height, width = 50 + first + image, 100 + first + image
        clipped = [min(max(value, 0), 1) for value in box]
        corners = [value * (width, height)[i % 2] for i, value in enumerate(clipped)]
        sides = [corners[2] - corners[0], corners[3] - corners[1]]
        rounded = [math.floor(value * 100 + 0.5) / 100 for value in corners[:2] + sides]
        result.append((int(first + image), int(label), score, rounded))
    return result


def run_twice(settings: str) -> list[tuple[int, int, float, list[float]]]:
    values = [value.float() for value in bottoms()]
    definition = f"type: 'DetectionOutput' detection_output_param {{ {settings} }}"
    layer = make_layer(definition, *[tuple(value.shape) for value in values])
    rows = [layer(*values)[0, 0].double().numpy() for _ in range(2)]
    return saved_boxes(rows[0], 0) + saved_boxes(rows[1], 3)


def test_voc_files(tmp_path: Path) -> None:
    expected = run_twice(save_settings(tmp_path, "VOC"))
    for label, name in ((1, "cat"), (2, "7"), (3, "dog")):
        lines = (tmp_path / "out/deep" / f"p_{name}.txt").read_text().splitlines()
        wanted = [each for each in expected if each[1] == label]
        assert len(lines) == len(wanted)
        for line, (image, _, score, box) in zip(lines, wanted, strict=True):
            x, y, width, height = map(int, box)
            assert line == f"0{image} {score:.6g} {x} {y} {x + width} {y + height}"
    assert not (tmp_path / "out/deep/p_none.txt").exists()


def test_coco_file(tmp_path: Path) -> None:
    expected = run_twice(save_settings(tmp_path, "COCO"))
    entries = json.loads((tmp_path / "out/deep/p_.json").read_text())
    names: list[str | int] = ["none", "cat", 7, "dog"]
    assert len(entries) == len(expected)
    for entry, (image, label, score, box) in zip(entries, expected, strict=True):
        assert (entry["image_id"], entry["category_id"]) == (image, names[label])
        assert entry["score"] == pytest.approx(score)
        np.testing.assert_allclose(entry["bbox"], box, atol=0.011)


def test_ilsvrc_file_with_some_of_the_images(tmp_path: Path) -> None:
    settings = save_settings(tmp_path, "ILSVRC", "num_test_image: 3")
    expected = run_twice(settings)[:9]  # the second pass begins with the first image again
    lines = (tmp_path / "out/deep/p_.txt").read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [[f"0{i}", str(k)] for i, k, _, _ in expected]
    assert [line.split()[3:] for line in lines] == [
        [str(int(x)), str(int(y)), str(int(x) + int(w)), str(int(y) + int(h))]
        for _, _, _, (x, y, w, h) in expected
    ]


def test_files_need_a_label_map_and_names(tmp_path: Path) -> None:
    with recorded_log() as messages:
        detect(
            f"num_classes: {CLASSES} save_output_param {{ output_directory: '{tmp_path}/out' }}",
            bottoms(),
        )
    assert "Provide label_map_file if output results to files." in messages
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "detection_output_param.num_classes: must be given, and be positive"),
        ("num_classes: 5", "30 prior boxes need 150 scores of an image, not 120"),
        ("num_classes: 4 share_location: false", "30 prior boxes need 480 locations of an image"),
        ("num_classes: 4 visualize: true", "visualize: showing boxes in a window is not possible"),
        ("num_classes: 4 nms_param { nms_threshold: -1 }", "nms_threshold: is -1; at least 0"),
        ("num_classes: 4 nms_param { eta: 0 }", "nms_param.eta: is 0; more than 0 and at most 1"),
    ],
)
def test_wrong_settings_are_named(settings: str, message: str) -> None:
    shapes = [tuple(value.shape) for value in bottoms()]
    definition = f"type: 'DetectionOutput' detection_output_param {{ {settings} }}"
    assert message in refused(definition, *shapes)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    shapes = [tuple(value.shape) for value in bottoms()]

    def complaint(settings: str) -> str:
        with pytest.raises(CaffeError) as caught:
            make_layer(f"type: 'DetectionOutput' detection_output_param {{ {settings} }}", *shapes)
        return str(caught.value)

    assert "output_format: is 'X'; VOC, COCO, ILSVRC" in complaint(save_settings(tmp_path, "X"))
    assert "num_test_image: is 7; " in complaint(
        save_settings(tmp_path, "VOC", "num_test_image: 7")
    )
    assert "resize_param: needs a height and a width" in complaint(
        save_settings(tmp_path, "VOC", "resize_param { height: 3 }")
    )
    settings = save_settings(tmp_path, "VOC")
    (tmp_path / "names.txt").write_text("a 1 2\nb 1\n")
    assert "names.txt:2: layer 'layer': 'b 1' is not a name, a height and a width" in complaint(
        settings
    )
    (tmp_path / "labels.prototxt").write_text("item { name: 'a' } item { name: 'a' label: 1 }")
    (tmp_path / "names.txt").write_text("a 1 2\n")
    assert "labels.prototxt: layer 'layer': has the name 'a' twice" in complaint(settings)


def test_prior_boxes_without_area_are_named() -> None:
    values = bottoms()
    values[2][0, 0, 4:8] = 0.25
    with pytest.raises(CaffeError, match=r"prior box 1 \(0.25, 0.25, 0.25, 0.25\) has no area"):
        detect(f"num_classes: {CLASSES} code_type: CENTER_SIZE", values)


def refinement() -> list[Tensor]:
    """Whether prior boxes are an object's, and how they are to be moved."""
    generator = torch.Generator().manual_seed(8)
    shares = torch.rand(IMAGES, PRIORS, generator=generator).double()
    moves = torch.randn(IMAGES, PRIORS * 4, generator=generator).double() * 0.3
    return [torch.stack([1 - shares, shares], -1).flatten(1), moves]


@pytest.mark.parametrize("count", [4, 5])
def test_prior_boxes_that_are_refined(count: int) -> None:
    """Each image has prior boxes of its own then, some of which are background."""
    values = [*bottoms(), *refinement()][:count]
    settings = f"num_classes: {CLASSES} code_type: CENTER_SIZE confidence_threshold: 0.05 "
    rows = detect(f"{settings} objectness_score: 0.4", values)
    expected = []
    priors, variances = values[2].view(2, PRIORS, 4).tolist()
    for image in range(IMAGES):
        codes = values[0].view(IMAGES, PRIORS, 4)[image].tolist()
        here = priors
        if count == 5:
            moves = values[4].view(IMAGES, PRIORS, 4)[image].tolist()
            here = [
                reference.decode("CENTER_SIZE", moves[i], priors[i], variances[i])
                for i in range(PRIORS)
            ]
        boxes = [
            reference.decode("CENTER_SIZE", codes[i], here[i], variances[i]) for i in range(PRIORS)
        ]
        objects = values[3].view(IMAGES, PRIORS, 2)[image, :, 1] >= 0.4
        for label in range(1, CLASSES):
            scores = values[1].view(IMAGES, PRIORS, CLASSES)[image, :, label]
            its = scores.where(objects, 0).tolist()
            for i in reference.suppress(boxes, its, 0.3, least=0.05):
                expected.append([image, label, its[i], *boxes[i]])
    assert len(expected) > 5
    np.testing.assert_allclose(rows, np.array(expected), rtol=1e-12)


def test_refinements_that_do_not_fit() -> None:
    text = f"type: 'DetectionOutput' detection_output_param {{ num_classes: {CLASSES} %s }}"
    shapes = [tuple(value.shape) for value in [*bottoms(), *refinement()]]
    assert "objectness_score: must be given for five" in refused(text % "", *shapes)
    wrong = refused(text % "objectness_score: 0.1", *shapes[:4], (IMAGES, PRIORS * 3))
    assert f"is (3, 90); 3 x {PRIORS * 4} would be right for {PRIORS} prior boxes" in wrong
