"""ImageSegData and ImageLabelmapData, by hand with OpenCV, and SegAccuracy, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from caffe_dns.data.transform import RecordDraws
from caffe_dns.errors import CaffeError
from caffe_dns.layers import Context
from tests.layers.data_harness import data_layer, read
from tests.layers.data_harness import refused as refused_data
from tests.layers.harness import draw, make_layer, refused

HEIGHT, WIDTH = 6, 8
MEAN = np.array([10.5, 20, 30], np.float32)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    draws = np.random.default_rng(1)
    for number in range(3):
        cv2.imwrite(
            f"{tmp_path}/{number}.png", draws.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        )
        cv2.imwrite(f"{tmp_path}/{number}_l.png", draws.integers(0, 5, (HEIGHT, WIDTH), np.uint8))
    lines = [f"/{number}.png /{number}_l.png\n" for number in range(3)]
    (tmp_path / "list").write_text("".join(lines))
    (tmp_path / "numbers").write_text("/0.png 3\n/1.png 4\n")
    return tmp_path


def text(
    folder: Path, transform: str = "", more: str = "label_type: PIXEL", name: str = "list"
) -> str:
    return (
        f"type: 'ImageSegData' image_data_param {{ source: '{folder}/{name}' batch_size: 2 "
        f"root_folder: '{folder}' {more} }} transform_param {{ mean_value: {MEAN.tolist()} "
        f"scale: 0.5 {transform} }}"
    )


def pair(folder: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    image, labels = cv2.imread(f"{folder}/{number}.png"), cv2.imread(f"{folder}/{number}_l.png", 0)
    assert image is not None
    assert labels is not None
    return image, labels


def finished(image: np.ndarray) -> np.ndarray:
    return (image.astype(np.float32) - MEAN).transpose(2, 0, 1) * np.float32(0.5)


def test_pixels_in_turn(listed: Path) -> None:
    with data_layer(text(listed), tops=3) as layer:
        for batch, (data, labels, extents) in enumerate(read(layer, 3)):
            for place in range(2):
                image, truth = pair(listed, (2 * batch + place) % 3)
                np.testing.assert_array_equal(data[place], finished(image))
                np.testing.assert_array_equal(labels[place, 0], truth)
                assert extents[place].tolist() == [[[HEIGHT, WIDTH]]]


def test_growth_filling_crops_and_mirrors(listed: Path) -> None:
    transform = "crop_height: 9 crop_width: 7 mirror: true scale_factors: [0.5, 1.5, 1]"
    with data_layer(text(listed, transform), tops=3, train=True, context=Context(seed=5)) as layer:
        batches = read(layer, 6)
    draws = RecordDraws(5, "transform/layer").of(np.arange(12)).tolist()
    for record, (mirror, down, right) in enumerate(draws):
        image, truth = pair(listed, record % 3)
        factor = [0.5, 1.5, 1][(mirror >> 1) % 3]
        side = int(WIDTH * factor), int(HEIGHT * factor)
        image = cv2.resize(image, side)
        truth = cv2.resize(truth, side, interpolation=cv2.INTER_NEAREST)
        below, beside = max(9 - side[1], 0), max(7 - side[0], 0)
        pixels = np.pad(finished(image), ((0, 0), (0, below), (0, beside)))
        truth = np.pad(truth, ((0, below), (0, beside)), constant_values=255)
        top, left = down % (truth.shape[0] - 8), right % (truth.shape[1] - 6)
        step = -1 if mirror & 1 else 1
        cut = (slice(top, top + 9), slice(left, left + 7))
        data, labels, extents = (part[record % 2] for part in batches[record // 2])
        np.testing.assert_array_equal(data, pixels[:, cut[0], cut[1]][..., ::step])
        np.testing.assert_array_equal(labels[0], truth[cut][:, ::step])
        assert extents.tolist() == [[[6, 7]]]


def test_labels_of_images_and_none(listed: Path) -> None:
    with data_layer(text(listed, "crop_size: 4", "", "numbers")) as layer:
        data, labels = read(layer, 1)[0]
    assert [set(each.flatten()) for each in labels] == [{3}, {4}]
    image, _ = pair(listed, 1)
    np.testing.assert_array_equal(data[1], finished(image[1:5, 2:6]))
    with data_layer(text(listed, "", "label_type: NONE ignore_label: 9")) as layer:
        assert set(read(layer, 1)[0][1].flatten()) == {9}


def test_maps_of_edges(listed: Path) -> None:
    """Values over 255, more than a half as 1; images and maps are cropped and mirrored alike."""
    for number in range(3):
        values = np.random.default_rng(number).choice([0, 51, 127, 128, 255], (HEIGHT, WIDTH))
        cv2.imwrite(f"{listed}/{number}_l.png", values.astype(np.uint8))
    edges = text(listed, "crop_size: 4 mirror: true", "").replace("ImageSeg", "ImageLabelmap")
    with data_layer(edges, train=True, context=Context(seed=5)) as layer:
        batches = read(layer, 3)
    draws = RecordDraws(5, "transform/layer").of(np.arange(6)).tolist()
    for record, (mirror, down, right) in enumerate(draws):
        image, truth = pair(listed, record % 3)
        shares = np.where(truth > 127, 1, truth / np.float32(255))
        top, left = down % (HEIGHT - 3), right % (WIDTH - 3)
        step = -1 if mirror & 1 else 1
        cut = (slice(top, top + 4), slice(left, left + 4))
        data, labels = (part[record % 2] for part in batches[record // 2])
        np.testing.assert_array_equal(data, finished(image)[:, cut[0], cut[1]][..., ::step])
        np.testing.assert_array_equal(labels[0], shares[cut][:, ::step])
    large = text(listed, "crop_size: 7", "").replace("ImageSeg", "ImageLabelmap")
    assert "too large for an image of (6, 8)" in refused_data(large)
    named = text(listed).replace("ImageSeg", "ImageLabelmap")
    assert "label_type: is for layers of type ImageSegData only" in refused_data(named)


def test_lists_and_settings_that_do_not_fit(listed: Path) -> None:
    assert "list:1: layer 'layer': is no image and a number" in refused_data(text(listed, "", ""))
    (listed / "long").write_text(f"/0.png {'9' * 5000}\n")
    assert "long:1: layer 'layer': is no image and a number" in refused_data(
        text(listed, "", "", "long")
    )
    (listed / "short").write_text("/0.png\n")
    assert "is no image and its labels" in refused_data(text(listed, name="short"))
    cv2.imwrite(f"{listed}/0_l.png", np.zeros((2, 2), np.uint8))
    assert "has (2, 2) labels; (6, 8) would be" in refused_data(text(listed))
    for transform, message in {
        "crop_height: 3": "crop_height and crop_width must be",
        "crop_size: 3 crop_height: 3 crop_width: 3": "either crop_size or crop_height",
        "scale_factors: 0": "scale_factors: must be positive",
        "mean_value: 1 crop_size: 9": "mean_value: is given 4 times for images of 3 channel(s)",
        "mean_file: 'x'": "takes mean_value only",
    }.items():
        assert message in refused_data(text(listed, transform))
    message = refused_data(text(listed, "scale_factors: 0.1", "", "numbers"))
    assert "scale_factors: 0.1 leaves nothing of an image of (6, 8)" in message
    source = f"source: '{listed}/numbers' root_folder: '{listed}'"
    plain = f"type: 'ImageData' image_data_param {{ {source} %s }} transform_param {{ %s }}"
    for given, message in {
        ("label_type: NONE", ""): "label_type: is for layers of type ImageSegData only",
        ("", "scale_factors: 1"): "scale_factors: is for layers of type ImageSegData only",
    }.items():
        assert message in refused_data(plain % given)


def shares(scores: np.ndarray, labels: np.ndarray, ignored: set[int]) -> list[float]:
    classes = scores.shape[1]
    counts = np.zeros((classes, classes))
    for n, y, x in np.ndindex(scores.shape[0], *scores.shape[2:]):
        label = int(labels[n, 0, y, x])
        if label not in ignored:
            best = max(range(classes), key=lambda c: (scores[n, c, y, x], c))
            counts[label, best] += 1
    recalls = [counts[c, c] / counts[c].sum() for c in range(classes) if counts[c].sum()]
    unions = [counts[c].sum() + counts[:, c].sum() - counts[c, c] for c in range(classes)]
    joint = [counts[c, c] / union if union else 1.0 for c, union in enumerate(unions)]
    total = np.trace(counts) / max(counts.sum(), 1)
    return [total, sum(recalls) / max(len(recalls), 1), sum(joint) / classes]


def test_seg_accuracy() -> None:
    scores = draw(2, 5, 3, 4).round()
    scores[:, 4] -= 9
    labels = torch.randint(0, 4, (2, 1, 3, 4), generator=torch.Generator().manual_seed(1)).double()
    labels[0, 0, 0] = 255
    labels[1, 0, 0, :2] = 7
    settings = "seg_accuracy_param { ignore_label: 255 ignore_label: 7 %s }"
    made = make_layer("type: 'SegAccuracy' " + settings % "", (2, 5, 3, 4), (2, 1, 3, 4))
    for _ in range(2):
        top = made(scores, labels)
        assert top.shape == (1, 1, 1, 3)
        expected = shares(scores.numpy(), labels.numpy(), {255, 7})
        np.testing.assert_allclose(top.flatten(), expected, rtol=1e-12)
    added = make_layer(
        "type: 'SegAccuracy' " + settings % "reset: false", (2, 5, 3, 4), (2, 1, 3, 4)
    )
    added(scores, labels)
    other = scores.flip(0)
    expected = shares(
        torch.cat([scores, other]).numpy(), torch.cat([labels, labels]).numpy(), {255, 7}
    )
    np.testing.assert_allclose(added(other, labels).flatten(), expected, rtol=1e-12)
    assert made(scores, torch.full_like(labels, 7)).flatten().tolist() == [0, 0, 1]


def test_what_seg_accuracy_refuses() -> None:
    assert "labels of (2, 3, 4) do not fit" in refused(
        "type: 'SegAccuracy'", (2, 5, 3, 4), (2, 3, 4)
    )
    made = make_layer("type: 'SegAccuracy'", (1, 2, 1, 1), (1, 1, 1, 1))
    with pytest.raises(CaffeError, match="label 2 is out of range; 0 to 1 would be right"):
        made(torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1, 1), 2.0))
