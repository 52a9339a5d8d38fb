"""Random sizes of Intel Caffe: where parts of an image come from is read off their pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_dns.layers import Context
from tests.layers.data_harness import data_layer, read, refused

HEIGHT, WIDTH, IMAGES = 60, 90, 4


@pytest.fixture
def listed(tmp_path: Path) -> str:
    """A definition, still open, of images whose channels are row, column and number."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    lines = []
    for number in range(IMAGES):
        pixels = np.stack([rows, columns, np.full_like(rows, number)], 2).astype(np.uint8)
        cv2.imwrite(f"{tmp_path}/{number}.png", pixels)
        lines.append(f"{tmp_path}/{number}.png {number}\n")
    (tmp_path / "list").write_text("".join(lines))
    return f"type: 'ImageData' image_data_param {{ source: '{tmp_path}/list' batch_size: %d }} "


def test_a_size_that_is_given(listed: str, tmp_path: Path) -> None:
    text = listed % 2 + (
        "transform_param { crop_size: 30 random_resize_param { min_size: 40 max_size: 40 "
        "resize_param { interp_mode: CUBIC } } }"
    )
    with data_layer(text) as layer:
        assert layer.reshape([]) == [(2, 3, 30, 30), (2,)]
        ((data, labels),) = read(layer, 1)
    image = cv2.imread(f"{tmp_path}/1.png")
    assert image is not None
    whole = cv2.resize(image, (60, 40), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(data[1], whole[5:35, 15:45].transpose(2, 0, 1))
    assert labels.tolist() == [0, 1]


def test_sizes_are_drawn_for_each_record(listed: str) -> None:
    transform = (
        "transform_param { crop_size: 20 random_resize_param { min_size: 30 max_size: 59 "
        "resize_param { interp_mode: NEAREST } } }"
    )
    batches = []
    for size in (1, 4):
        with data_layer(listed % size + transform, context=Context(seed=3)) as layer:
            found = [data for data, _ in read(layer, 40 // size)]
        batches.append(np.concatenate(found))
    np.testing.assert_array_equal(batches[0], batches[1])
    # 20 rows of an image of n, whose shorter side had 60: 20 * 60 / n of them.
    spans = batches[0][:, 0, -1, 0] - batches[0][:, 0, 0, 0]
    assert len(set(spans.tolist())) > 8
    assert 18 <= spans.min() < 24
    assert 34 < spans.max() <= 40


def test_parts_of_many_shapes(listed: str) -> None:
    text = listed % 4 + (
        "transform_param { crop_size: 50 random_aspect_ratio_param { min_area_ratio: 0.1 "
        "max_area_ratio: 0.4 aspect_ratio_change: 0.75 resize_param { interp_mode: NEAREST } } }"
    )
    with data_layer(text, train=True, context=Context(seed=3)) as layer:
        data = np.concatenate([batch[0] for batch in read(layer, 30)])
    assert data.shape == (120, 3, 50, 50)
    height = data[:, 0, -1, 0] - data[:, 0, 0, 0] + 1
    width = data[:, 1, 0, -1] - data[:, 1, 0, 0] + 1
    shares, shapes = height * width / (HEIGHT * WIDTH), height / width
    assert 0.08 < shares.min() < 0.15
    assert 0.35 < shares.max() < 0.45
    assert 0.5 < shapes.min() < 0.65
    assert 1.5 < shapes.max() < 1.9
    assert data[:, 0].max() > HEIGHT - 5
    assert data[:, 1].min() < 5


@pytest.mark.parametrize(
    ("transform", "wrong"),
    [
        ("random_resize_param { }", "random_resize_param: needs a crop_size"),
        ("crop_size: 9 mean_file: 'x' random_resize_param { }", "mean_value is needed"),
        (
            "crop_size: 9 random_resize_param { } random_aspect_ratio_param { }",
            "cannot be combined with random_aspect_ratio_param",
        ),
        ("crop_size: 9 random_resize_param { min_size: 9 max_size: 8 }", "min_size 9 is above"),
        ("crop_size: 9 random_aspect_ratio_param { max_area_ratio: 2 }", "between 0 and 1"),
        ("crop_size: 9 random_aspect_ratio_param { aspect_ratio_change: 0 }", "between 0 and 1"),
    ],
)
def test_what_does_not_fit(listed: str, transform: str, wrong: str) -> None:
    assert wrong in refused(listed % 2 + f"transform_param {{ {transform} }}")


def test_other_layers_do_not_take_it(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("")
    text = (
        f"type: 'DenseImageData' dense_image_data_param {{ source: '{tmp_path}/list' "
        "batch_size: 1 } transform_param { random_resize_param { } }"
    )
    assert "is for layers of type Data and ImageData only" in refused(text)


def test_sizes_of_nvcaffe(listed: str, tmp_path: Path) -> None:
    image = cv2.imread(f"{tmp_path}/1.png")
    assert image is not None
    for fields, size, how in (
        ("img_rand_resize_lower: 40 img_rand_resize_upper: 40", (60, 40), cv2.INTER_NEAREST),
        (
            "rand_resize_ratio_lower: 1.2 rand_resize_ratio_upper: 1.2 "
            "interpolation_algo_down: INTER_AREA",
            (72, 60),
            cv2.INTER_AREA,
        ),
        (
            "vertical_stretch_lower: 1.5 vertical_stretch_upper: 1.5 horizontal_stretch_lower: 0.5 "
            "horizontal_stretch_upper: 0.5 allow_upscale: true",
            (45, 90),
            cv2.INTER_CUBIC,
        ),
        # Without allow_upscale, no side grows.
        ("vertical_stretch_lower: 2 vertical_stretch_upper: 2", (90, 60), cv2.INTER_NEAREST),
    ):
        with data_layer(listed % 2 + f"transform_param {{ crop_size: 30 {fields} }}") as layer:
            data = read(layer, 1)[0][0]
        whole = cv2.resize(image, size, interpolation=how)
        top, left = (size[1] - 30) // 2, (size[0] - 30) // 2
        expected = whole[top : top + 30, left : left + 30].transpose(2, 0, 1)
        np.testing.assert_array_equal(data[1], expected, fields)


def test_sizes_of_nvcaffe_are_drawn(listed: str) -> None:
    transform = (
        "transform_param { crop_size: 20 img_rand_resize_lower: 30 img_rand_resize_upper: 59 }"
    )
    with data_layer(listed % 4 + transform) as layer:
        found = np.concatenate([data for data, _ in read(layer, 10)])
    spans = found[:, 0, -1, 0] - found[:, 0, 0, 0]
    assert len(set(spans.tolist())) > 8
    assert 18 <= spans.min() < 24
    assert 34 < spans.max() <= 40


def test_what_nvcaffe_refuses(listed: str) -> None:
    for fields, message in {
        "img_rand_resize_lower: 9 img_rand_resize_upper: 8": "img_rand_resize_lower: is above",
        "vertical_stretch_lower: 0.5 mean_file: 'x'": "mean_value is needed",
    }.items():
        text = listed % 2 + f"transform_param {{ crop_size: 30 {fields} }}"
        assert message in refused(text)
    assert "needs a crop_size" in refused(
        listed % 2 + "transform_param { img_rand_resize_lower: 9 img_rand_resize_upper: 9 }"
    )
