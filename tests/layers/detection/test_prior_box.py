"""PriorBox against the boxes written out in a loop, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.layers.harness import make_layer, refused, run
from tests.oracle import assert_close

MAP, IMAGE = (2, 8, 3, 2), (2, 3, 40, 30)


def written_out(
    sizes: list[tuple[float, float]],
    places: tuple[int, int],
    image: tuple[float, float],
    step: tuple[float, float],
    offset: float = 0.5,
) -> np.ndarray:
    """Boxes of these sizes (width, height); all other pairs are height and width."""
    boxes = []
    for row in range(places[0]):
        for column in range(places[1]):
            y, x = (row + offset) * step[0], (column + offset) * step[1]
            for width, height in sizes:
                low = [(x - width / 2) / image[1], (y - height / 2) / image[0]]
                high = [(x + width / 2) / image[1], (y + height / 2) / image[0]]
                boxes.append(low + high)
    return np.array(boxes)


def make_boxes(settings: str) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and variances, [N, 4] each."""
    layer = make_layer(f"type: 'PriorBox' prior_box_param {{ {settings} }}", MAP, IMAGE)
    top = run(layer, torch.zeros(MAP), torch.zeros(IMAGE))[0]
    return top[0, 0].reshape(-1, 4).numpy(), top[0, 1].reshape(-1, 4).numpy()


def test_all_boxes_of_a_place() -> None:
    settings = (
        "min_size: 10 min_size: 20.7 max_size: 16 max_size: 30 aspect_ratio: 2 aspect_ratio: 3 "
        "variance: 0.1 variance: 0.2 variance: 0.3 variance: 0.4"
    )
    ratios = [2, 1 / 2, 3, 1 / 3]
    sizes = []
    for low, high in ((10, 16), (20, 30)):
        sizes += [(low, low), (math.sqrt(low * high),) * 2]
        sizes += [(low * math.sqrt(ratio), low / math.sqrt(ratio)) for ratio in ratios]
    boxes, variances = make_boxes(settings)
    assert_close(boxes, written_out(sizes, (3, 2), (40, 30), (40 / 3, 15)), "boxes")
    assert_close(variances, np.tile([0.1, 0.2, 0.3, 0.4], (6 * 12, 1)), "variances")


def test_ratios_are_taken_once_and_turned_over_only_if_asked() -> None:
    boxes, variances = make_boxes(
        "min_size: 10 aspect_ratio: 1 aspect_ratio: 2 aspect_ratio: 2.0000001 flip: false"
    )
    root = math.sqrt(2)
    sizes = [(10, 10), (10 * root, 10 / root)]
    assert_close(boxes, written_out(sizes, (3, 2), (40, 30), (40 / 3, 15)), "boxes")
    assert_close(variances, np.full((12, 4), 0.1), "variances")
    flipped = make_boxes("min_size: 10 aspect_ratio: 2 aspect_ratio: 0.5")[0]
    sizes.append((10 / root, 10 * root))
    assert_close(flipped, written_out(sizes, (3, 2), (40, 30), (40 / 3, 15)), "flipped")


def test_the_square_may_be_left_out() -> None:
    given = "min_size: 10 max_size: 16 use_default_aspect_ratio: false aspect_ratio: 2"
    root = math.sqrt(2)
    sizes = [(math.sqrt(160),) * 2, (10 * root, 10 / root), (10 / root, 10 * root)]
    boxes = make_boxes(given)[0]
    assert_close(boxes, written_out(sizes, (3, 2), (40, 30), (40 / 3, 15)), "boxes")
    boxes = make_boxes(f"{given} aspect_ratio: 1")[0]
    sizes.append((10, 10))
    assert_close(boxes, written_out(sizes, (3, 2), (40, 30), (40 / 3, 15)), "boxes")


@pytest.mark.parametrize(
    ("settings", "image", "step", "offset"),
    [
        ("img_size: 60", (60, 60), (20, 30), 0.5),
        ("img_h: 50 img_w: 60", (50, 60), (50 / 3, 30), 0.5),
        ("step: 8", (40, 30), (8, 8), 0.5),
        ("step_h: 8 step_w: 16.5 offset: 0.25", (40, 30), (8, 16.5), 0.25),
    ],
)
def test_extents_and_steps(
    settings: str, image: tuple[float, float], step: tuple[float, float], offset: float
) -> None:
    boxes = make_boxes(f"min_size: 10 {settings}")[0]
    assert_close(boxes, written_out([(10, 10)], (3, 2), image, step, offset), "boxes")


def test_clip() -> None:
    boxes = make_boxes("min_size: 30 clip: true")[0]
    expected = written_out([(30, 30)], (3, 2), (40, 30), (40 / 3, 15))
    assert expected.min() < 0 and expected.max() > 1
    assert_close(boxes, expected.clip(0, 1), "boxes")


def test_boxes_of_extents_of_their_own() -> None:
    settings = "width: 9.4 width: 25.1 height: 15 height: 39.6 step: 16 offset: 0.25"
    layer = make_layer(f"type: 'PriorBoxClustered' prior_box_param {{ {settings} }}", MAP, IMAGE)
    top = run(layer, torch.zeros(MAP), torch.zeros(IMAGE))[0]
    sizes = [(9.4, 15.0), (25.1, 39.6)]
    boxes = written_out(sizes, (3, 2), (40, 30), (16, 16), offset=0.25)
    assert_close(top[0, 0].reshape(-1, 4).numpy(), boxes, "boxes")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("width: 3 height: 3 height: 4", "width: 1 width(s) and 2 height(s) are given; as many"),
        ("", "width: 0 width(s) and 0 height(s) are given; as many of both would be right"),
        ("width: 3 height: 0", "height: is 0; more than 0 would be right"),
        ("width: 3 height: 3 min_size: 2", "min_size: says nothing to this type; none would be"),
    ],
)
def test_wrong_extents_are_named(settings: str, message: str) -> None:
    definition = f"type: 'PriorBoxClustered' prior_box_param {{ {settings} }}"
    assert f"prior_box_param.{message}" in refused(definition, MAP, IMAGE)


def test_the_image_may_be_left_out_where_its_size_is_given() -> None:
    layer = make_layer("type: 'PriorBox' prior_box_param { min_size: 4 img_size: 40 }", MAP)
    assert run(layer, torch.zeros(MAP))[0].shape == (1, 2, 24)
    missing = refused("type: 'PriorBox' prior_box_param { min_size: 4 }", MAP)
    assert "the image is missing: a second bottom, or img_size" in missing


def test_boxes_follow_the_size_of_the_map() -> None:
    layer = make_layer("type: 'PriorBox' prior_box_param { min_size: 4 }", MAP, IMAGE)
    first = run(layer, torch.zeros(MAP), torch.zeros(IMAGE))[0]
    assert run(layer, torch.zeros(MAP), torch.zeros(IMAGE))[0] is first
    larger = run(layer, torch.zeros(2, 8, 4, 2), torch.zeros(IMAGE))[0]
    boxes = larger[0, 0].reshape(-1, 4)
    assert_close(boxes, written_out([(4, 4)], (4, 2), (40, 30), (10, 15)), "boxes")
    wider = run(layer, torch.zeros(2, 8, 4, 2), torch.zeros(1, 3, 40, 60))[0]
    boxes = wider[0, 0].reshape(-1, 4)
    assert_close(boxes, written_out([(4, 4)], (4, 2), (40, 60), (10, 30)), "boxes")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "min_size: is missing; at least 1 would be right"),
        ("min_size: 2 width: 3", "width: says nothing to this type; none would be right"),
        ("min_size: 0", "min_size: is 0; at least 1 would be right"),
        ("min_size: 2 max_size: 3 max_size: 4", "max_size: given 2 time(s) beside 1 min_size"),
        ("min_size: 3 max_size: 3", "max_size: is 3; more than the min_size 3 would be right"),
        ("min_size: 3 aspect_ratio: 0", "aspect_ratio: is 0; more than 0"),
        ("min_size: 3 variance: 1 variance: 1", "variance: given 2 times; 1 or 4 would be right"),
        ("min_size: 3 variance: 0", "variance: is 0; more than 0 would be right"),
        ("min_size: 3 img_size: 4 img_h: 4", "img_size: is given beside img_h or img_w"),
        ("min_size: 3 img_h: 4", "img_w: is 0; more than 0 would be right"),
        ("min_size: 3 step: -1", "step: is -1; more than 0 would be right"),
        (
            "min_size: 3 use_default_aspect_ratio: false",
            "use_default_aspect_ratio: leaves no box; an aspect_ratio would be right",
        ),
    ],
)
def test_wrong_settings_are_named(settings: str, message: str) -> None:
    definition = f"type: 'PriorBox' prior_box_param {{ {settings} }}"
    assert f"prior_box_param.{message}" in refused(definition, MAP, IMAGE)


def test_boxes_of_tensorflow() -> None:
    # In the order of TensorFlow; the square of 60 is a twentieth of the image smaller all around.
    text = "min_size: 60 min_size: 105 max_size: 105 max_size: 150 aspect_ratio: 2 tf: true"
    sizes = []
    for low, high in ((60, 105), (105, 150)):
        sizes += [(low, low), (low * 2**0.5, low / 2**0.5), (low / 2**0.5, low * 2**0.5)]
        sizes.append((math.sqrt(low * high),) * 2)
    expected = written_out(sizes, (3, 2), (40, 30), (40 / 3, 15))
    expected[::8] += [0.05, 0.05, -0.05, -0.05]
    assert_close(make_boxes(text)[0], expected, "boxes")
    assert_close(make_boxes(text + " yx_order: true")[0], expected[:, [1, 0, 3, 2]], "boxes")
