"""DenseImageData: images and their labels, cut and mirrored alike, read by hand with OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_dns.data.transform import RecordDraws
from caffe_dns.layers import Context
from tests.layers.data_harness import data_layer, read, refused

COUNT, HEIGHT, WIDTH = 5, 6, 8


@pytest.fixture
def listed(tmp_path: Path) -> str:
    """A definition, still open, of a list of pairs; the fifth image is larger."""
    draws = np.random.default_rng(1)
    names = []
    for number in range(COUNT):
        size = (HEIGHT, WIDTH) if number < 4 else (HEIGHT + 2, WIDTH + 3)
        cv2.imwrite(f"{tmp_path}/{number}.png", draws.integers(0, 256, (*size, 3), np.uint8))
        cv2.imwrite(f"{tmp_path}/{number}_l.png", draws.integers(0, 12, size, np.uint8))
        names.append(f"{number}.png {number}_l.png\n")
    (tmp_path / "list").write_text("".join(names))
    (tmp_path / "four").write_text("".join(names[:4]))
    return f"type: 'DenseImageData' dense_image_data_param {{ root_folder: '{tmp_path}/' source: "


def pair(folder: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    image, labels = cv2.imread(f"{folder}/{number}.png"), cv2.imread(f"{folder}/{number}_l.png", 0)
    assert image is not None
    assert labels is not None
    return image.astype(np.float32), labels.astype(np.float32)


def test_images_and_labels_in_turn(listed: str, tmp_path: Path) -> None:
    text = f"{listed} '{tmp_path}/four' batch_size: 3 }} transform_param {{ scale: 0.5 "
    text += "mean_value: 1 mean_value: 2 mean_value: 3 }"
    with data_layer(text) as layer:
        assert layer.reshape([]) == [(3, 3, HEIGHT, WIDTH), (3, 1, HEIGHT, WIDTH)]
        for index, (data, labels) in enumerate(read(layer, 3)):
            for place in range(3):
                image, truth = pair(tmp_path, (3 * index + place) % 4)
                expected = (image - [1, 2, 3]).transpose(2, 0, 1) * 0.5
                np.testing.assert_array_equal(data[place], expected)
                np.testing.assert_array_equal(labels[place, 0], truth)


def test_crops_and_mirrors_are_the_same_for_both(listed: str, tmp_path: Path) -> None:
    settings = "batch_size: 2 crop_height: 3 crop_width: 5 mirror: true shuffle: true }"
    context = Context(seed=7)
    with data_layer(f"{listed} '{tmp_path}/list' {settings}", train=True, context=context) as layer:
        batches = read(layer, 5)
    draws = RecordDraws(7, "transform/layer").of(np.arange(10))
    cuts = set()
    seen = []
    for number, (mirror, top, left) in enumerate(draws.tolist()):
        data, labels = (part[number % 2] for part in batches[number // 2])
        found = []
        for candidate in range(COUNT):
            image, truth = pair(tmp_path, candidate)
            if mirror & 1:
                image, truth = image[:, ::-1], truth[:, ::-1]
            y, x = top % (truth.shape[0] - 2), left % (truth.shape[1] - 4)
            if np.array_equal(image[y : y + 3, x : x + 5].transpose(2, 0, 1), data):
                found.append(candidate)
                np.testing.assert_array_equal(truth[y : y + 3, x : x + 5], labels[0])
                cuts.add((mirror & 1, y, x))
        seen += found
        assert len(found) == 1
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(COUNT))
    assert seen[:5] != seen[5:]
    assert len(cuts) > 3


def test_new_sizes(listed: str, tmp_path: Path) -> None:
    """Labels get pixels that they have, and ENet's factor."""
    settings = "batch_size: 1 new_height: 12 new_width: 16 label_divide_factor: 4 is_color: false }"
    with data_layer(f"{listed} '{tmp_path}/list' {settings}") as layer:
        ((data, labels),) = read(layer, 1)
    gray = cv2.imread(f"{tmp_path}/0.png", 0)
    assert gray is not None
    np.testing.assert_array_equal(data[0, 0], cv2.resize(gray, (16, 12)))
    rows, columns = np.arange(3) * HEIGHT // 3, np.arange(4) * WIDTH // 4
    np.testing.assert_array_equal(labels[0, 0], pair(tmp_path, 0)[1][np.ix_(rows, columns)])


def test_sizes_may_vary_from_batch_to_batch_of_one(listed: str, tmp_path: Path) -> None:
    with data_layer(f"{listed} '{tmp_path}/list' batch_size: 1 }}") as layer:
        shapes = [data.shape[2:] for data, _ in read(layer, COUNT)]
    assert shapes == [(HEIGHT, WIDTH)] * 4 + [(HEIGHT + 2, WIDTH + 3)]
    message = refused(f"{listed} '{tmp_path}/list' batch_size: 5 }}", batches=1)
    assert "images of (3, 6, 8) and (3, 8, 11)" in message


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ("", "dense_image_data_param.batch_size: must be given"),
        ("batch_size: 1 new_height: 3", "new_height and new_width must be given together"),
        ("batch_size: 1 crop_width: 3", "crop_height and crop_width must be given together"),
        ("batch_size: 1 mean_file: 'x'", "mean_file: is not read in the fork"),
        ("batch_size: 1 label_divide_factor: 0", "must be at least 1"),
        (
            "batch_size: 1 label_divide_factor: 2 crop_height: 2 crop_width: 2",
            "cannot be combined with a crop",
        ),
        ("batch_size: 1 crop_height: 9 crop_width: 2", "0.png: layer 'layer': is 6 x 8, smaller"),
        ("batch_size: 1 label_divide_factor: 2", "has 6 x 8 labels; 3 x 4 would be right"),
        ("batch_size: 1 } transform_param { mirror: true", "transform_param: mirrors and crops"),
    ],
)
def test_what_does_not_fit(listed: str, tmp_path: Path, settings: str, wrong: str) -> None:
    assert wrong in refused(f"{listed} '{tmp_path}/four' {settings} }}")


def test_a_list_without_pairs(listed: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("0.png\n")
    message = refused(f"{listed} '{tmp_path}/one' batch_size: 1 }}")
    assert "one: layer 'layer': lists no pair" in message
