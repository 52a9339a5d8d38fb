"""Images and boxes through the whole transform: a marked object stays under its box."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_dns.data.annotated_datum import Annotated, make_objects
from caffe_dns.data.annotated_transform import AnnotatedTransform
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, AnnotatedDataParameter, TransformationParameter
from tests.nets import recorded_log

#: The object's rows and columns in an image of 60 x 80.
ROWS, COLUMNS = slice(20, 40), slice(30, 70)


def scene(dtype: type = np.uint8) -> Annotated:
    """A bright object on black."""
    image: np.ndarray = np.zeros((60, 80, 3), dtype)
    image[ROWS, COLUMNS] = (200, 150, 250)
    box = [30 / 80, 20 / 60, 70 / 80, 40 / 60]
    return Annotated(image, make_objects([box], [3], [1], [True]), True, 0)


def transform(text: str, samplers: str = "", phase: int = TRAIN) -> AnnotatedTransform:
    result = AnnotatedTransform(
        text_format.Parse(text, TransformationParameter()),
        text_format.Parse(samplers, AnnotatedDataParameter()).batch_sampler,
        phase,
    )
    result.check(3)
    return result


def apply(text: str, samplers: str = "", phase: int = TRAIN, seed: int = 0) -> Annotated:
    return transform(text, samplers, phase).apply(scene(), np.random.default_rng(seed))


def bright_box(image: np.ndarray, level: int = 100) -> np.ndarray:
    """The smallest box around what is bright, in shares of the image."""
    rows, columns = np.nonzero(image.max(2) > level)
    height, width = image.shape[:2]
    low = [columns.min() / width, rows.min() / height]
    return np.array([*low, (columns.max() + 1) / width, (rows.max() + 1) / height])


def assert_under_box(found: Annotated, pixels: float) -> None:
    assert len(found.objects) == 1
    assert found.objects.labels.tolist() == [3] and found.objects.difficult.tolist() == [True]
    height, width = found.size
    difference = bright_box(found.image) - found.objects.boxes[0]
    assert np.abs(difference * [width, height, width, height]).max() <= pixels


RESIZE = "resize_param { height: 45 width: 50 }"
SAMPLERS = (
    "batch_sampler { sampler { min_scale: 0.4 max_scale: 1 min_aspect_ratio: 0.5"
    " max_aspect_ratio: 2 } max_sample: 1 sample_constraint { min_jaccard_overlap: 0.3 } }"
)


@pytest.mark.parametrize(
    ("text", "samplers"),
    [
        ("", ""),
        ("mirror: true", ""),
        (RESIZE, ""),
        (f"{RESIZE} mirror: true", SAMPLERS),
        ("resize_param { height: 50 width: 45 resize_mode: FIT_LARGE_SIZE_AND_PAD }", ""),
        ("resize_param { height: 45 width: 50 resize_mode: FIT_SMALL_SIZE }", SAMPLERS),
        ("crop_size: 50", ""),
        ("crop_h: 48 crop_w: 70 mirror: true", ""),
        (f"expand_param {{ max_expand_ratio: 3 }} {RESIZE}", ""),
        (f"expand_param {{ max_expand_ratio: 2 }} {RESIZE} mirror: true", SAMPLERS),
        ("distort_param { brightness_prob: 1 brightness_delta: 32 } mirror: true", SAMPLERS),
    ],
)
def test_objects_stay_under_their_boxes(text: str, samplers: str) -> None:
    results = [apply(text, samplers, seed=seed) for seed in range(12)]
    for found in results:
        # Parts are cut out in whole pixels, and enlarged.
        assert_under_box(found, pixels=4 if samplers else 1.5)
    is_random = samplers or any(word in text for word in ("mirror", "crop", "expand", "distort"))
    assert len({found.image.tobytes() for found in results}) == 1 or is_random
    again = apply(text, samplers, seed=5)
    np.testing.assert_array_equal(again.image, results[5].image)
    np.testing.assert_array_equal(again.objects.boxes, results[5].objects.boxes)


def test_nothing_is_done_by_default() -> None:
    found = apply("")
    np.testing.assert_array_equal(found.image, scene().image)
    np.testing.assert_allclose(found.objects.boxes, scene().objects.boxes, rtol=1e-6)


def test_crops_are_random_in_training_and_central_in_tests() -> None:
    central = apply("crop_h: 40 crop_w: 60", phase=TEST)
    np.testing.assert_array_equal(central.image, scene().image[10:50, 10:70])
    np.testing.assert_allclose(central.objects.boxes, [[20 / 60, 0.25, 1, 0.75]], rtol=1e-6)
    places = {apply("crop_size: 58", seed=seed).image.tobytes() for seed in range(20)}
    assert len(places) > 10


def test_the_frame_has_the_mean_for_its_colour() -> None:
    text = "expand_param { max_expand_ratio: 4 } mean_value: 11.6 mean_value: 20 mean_value: 300"
    sizes = set()
    for seed in range(10):
        found = apply(text, seed=seed)
        sizes.add(found.size)
        dark = (found.image == 0).all(2).sum()
        frame = (found.image == [12, 20, 255]).all(2).sum()
        assert dark == 60 * 80 - 20 * 40
        assert frame == found.size[0] * found.size[1] - 60 * 80
        assert 60 <= found.size[0] < 240 and found.size[1] < 320
    assert len(sizes) > 8
    never = [apply("expand_param { prob: 0 max_expand_ratio: 4 }", seed=n).size for n in range(9)]
    assert set(never) == {(60, 80)}


def test_objects_that_do_not_meet_the_constraint_are_gone() -> None:
    samplers = "batch_sampler { sampler { min_scale: 0.2 max_scale: 0.2 } max_sample: 1 }"
    counts = {
        text: sum(len(apply(text, samplers, seed=seed).objects) for seed in range(60))
        for text in (
            "",
            "emit_constraint { emit_type: CENTER }",
            "emit_constraint { emit_type: MIN_OVERLAP emit_overlap: 0.2 }",
        )
    }
    most, centre, overlap = counts.values()
    assert 60 > most > centre > 0
    assert most > overlap


def test_boxes_may_be_counted_by_a_scale() -> None:
    text = (
        "resize_param { height: 30 width: 30 resize_mode: FIT_SMALL_SIZE height_scale: 15"
        " width_scale: 20 } crop_size: 30"
    )
    found = apply(text, phase=TEST)
    # 60 x 80 becomes 30 x 40; the crop of 30 x 30 begins at column 5.
    box = np.array([15 - 5, 10, 35 - 5, 20]) / [20, 15, 20, 15]
    np.testing.assert_allclose(found.objects.boxes, [box], rtol=1e-5)


def test_jitter_leaves_out_up_to_a_share_of_each_side() -> None:
    """Nothing once in five, half of it once in five; boxes go with what is left."""
    text, areas = "resize_param { height: 120 width: 160 %s }", []
    for padded in ("", "resize_mode: FIT_LARGE_SIZE_AND_PAD"):
        param = text_format.Parse(text % padded, TransformationParameter())
        jittered = AnnotatedTransform(param, [], TRAIN, jitter=0.5)
        for seed in range(100):
            found = jittered.apply(scene(), np.random.default_rng(seed))
            assert found.size == (120, 160)
            boxes = found.objects.boxes
            if not len(boxes) or boxes.min() < 0.03 or boxes.max() > 0.97:
                continue  # a part of the object, perhaps
            assert_under_box(found, 5)  # parts begin at whole pixels, of which one is 4 here
            growth = (boxes[0, 2:] - boxes[0, :2]) / [40 / 80, 20 / 60]
            assert (growth < 2.1).all()
            if padded:
                assert growth[0] == pytest.approx(growth[1], rel=0.05)
            areas.append(growth.prod())
    assert np.mean(np.isclose(areas, 1, atol=0.01)) > 0.1
    assert np.max(areas) > 1.5


def test_fields_without_effect_are_said() -> None:
    with recorded_log() as messages:
        transform("resize_param { prob: 0.5 height: 3 width: 3 } noise_param { prob: 0.1 }")
    assert messages == [
        "transform_param.resize_param.prob has no effect, as in SSD's fork",
        "transform_param.noise_param.prob has no effect, as in SSD's fork",
    ]


@pytest.mark.parametrize(
    ("text", "samplers", "message"),
    [
        ("crop_h: 3", "", "transform_param: crop_h and crop_w must be given together"),
        ("resize_param { width: 3 }", "", "transform_param.resize_param: needs a height and a"),
        (
            "resize_param { height: 3 width: 3 pad_value: 1 pad_value: 2 }",
            "",
            "transform_param.resize_param.pad_value: is given 2 times for images of 3 channel",
        ),
        (
            "expand_param { max_expand_ratio: 1 }",
            "",
            "transform_param.expand_param.max_expand_ratio: must be more than 1",
        ),
        (
            "expand_param { max_expand_ratio: 2 } mean_file: 'x'",
            "",
            "transform_param.expand_param: fills with mean_value, not with a mean_file",
        ),
        ("noise_param { convert_to_lab: true }", "", "transform_param.noise_param.convert_to_lab"),
        (
            "distort_param { hue_delta: -1 }",
            "",
            "transform_param.distort_param.hue_delta: must not be negative",
        ),
        (
            "",
            "batch_sampler { sampler { min_scale: 0 } }",
            "annotated_data_param.batch_sampler.sampler.max_scale: from 0 to 1 is no range",
        ),
    ],
)
def test_wrong_settings_are_named(text: str, samplers: str, message: str) -> None:
    with pytest.raises(CaffeError, match=message):
        transform(text, samplers)


def test_what_cannot_be_done_to_an_image_is_named() -> None:
    with pytest.raises(CaffeError, match="a crop of 70x70 is larger than an image of 60x80"):
        apply("crop_size: 70")
    floats = transform("distort_param { brightness_prob: 1 }")
    with pytest.raises(CaffeError, match="take images of bytes, not float_data"):
        floats.apply(scene(np.float32), np.random.default_rng(0))


def test_deepdetect_distorts_colours_twice() -> None:
    """Each time all values move by up to 20."""
    shifts = set()
    for seed in range(60):
        text = "distort_param { prob: 1 brightness: true brightness_delta: 20 }"
        image = apply(text, seed=seed).image.astype(int)
        shifts |= set((image - scene().image)[scene().image == 150].tolist())
    assert 25 < max(shifts) <= 40 and -40 <= min(shifts) < -25
