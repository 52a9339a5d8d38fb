"""Distortions and noise against what they say of single pixels."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_dns.data.image_effects import (
    add_noise,
    check_distortion,
    check_noise,
    distort,
    in_ssd_form,
)
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import DistortionParameter, NoiseParameter

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 14, 3), np.uint8)
GRAY = IMAGE[:, :, :1].copy()


def distorted(text: str, image: np.ndarray = IMAGE, seed: int = 0) -> np.ndarray:
    param = text_format.Parse(text, DistortionParameter())
    return distort(image, param, np.random.default_rng(seed))


def test_nothing_changes_by_default() -> None:
    assert distorted("") is IMAGE


@pytest.mark.parametrize("image", [IMAGE, GRAY])
def test_brightness(image: np.ndarray) -> None:
    shifts = set()
    for seed in range(20):
        found = distorted("brightness_prob: 1 brightness_delta: 40", image, seed).astype(int)
        inner = (image > 40) & (image < 215)
        shift = set((found - image.astype(int))[inner].tolist())
        assert len(shift) == 1
        shifts |= shift
        assert found.min() >= 0 and found.max() <= 255
    assert min(shifts) < -20 and max(shifts) > 20 and min(shifts) >= -40 and max(shifts) <= 40


def test_contrast() -> None:
    factors = []
    for seed in range(20):
        found = distorted("contrast_prob: 1 contrast_lower: 0.5 contrast_upper: 1.5", seed=seed)
        inner = (IMAGE > 100) & (IMAGE < 165)
        ratio = found[inner] / IMAGE[inner]
        assert ratio.max() - ratio.min() < 0.01
        factors.append(ratio.mean())
    assert min(factors) < 0.7 and max(factors) > 1.3


def hsv(pixel: np.ndarray) -> tuple[float, float, float]:
    blue, green, red = (float(value) / 255 for value in pixel)
    return colorsys.rgb_to_hsv(red, green, blue)


def test_saturation_and_hue() -> None:
    image = np.array([[[40, 120, 200], [60, 200, 90], [210, 130, 50]]], np.uint8)
    pale = distorted("saturation_prob: 1 saturation_lower: 0.5 saturation_upper: 0.5", image)
    turned = [distorted("hue_prob: 1 hue_delta: 18", image, seed)[0, 0] for seed in range(40)]
    for before, after in zip(image[0], pale[0], strict=True):
        hue, saturation, value = hsv(before)
        assert hsv(after) == pytest.approx((hue, saturation / 2, value), abs=0.02)
    hue, saturation, value = hsv(image[0, 0])
    turns = []
    for pixel in turned:
        its_hue, its_saturation, its_value = hsv(pixel)
        assert (its_saturation, its_value) == pytest.approx((saturation, value), abs=0.02)
        turns.append((its_hue - hue) * 180)
    assert min(turns) < -9 and max(turns) > 9 and max(map(abs, turns)) < 19


def test_order_of_channels() -> None:
    orders = {
        tuple(distorted("random_order_prob: 1", IMAGE, seed)[0, 0].tolist()) for seed in range(60)
    }
    assert len(orders) == 6
    assert all(sorted(order) == sorted(IMAGE[0, 0].tolist()) for order in orders)


def test_probabilities() -> None:
    changed = sum(
        distorted("brightness_prob: 0.25 brightness_delta: 30", seed=seed) is not IMAGE
        for seed in range(200)
    )
    assert 30 < changed < 70


def test_contrast_comes_before_or_after_saturation() -> None:
    text = (
        "contrast_prob: 1 contrast_lower: 1.5 contrast_upper: 1.5 "
        "saturation_prob: 1 saturation_lower: 0.2 saturation_upper: 0.2"
    )
    assert len({distorted(text, seed=seed).tobytes() for seed in range(20)}) == 2


# Noise ------------------------------------------------------------------------------------------


def noisy(text: str, image: np.ndarray = IMAGE, seed: int = 0) -> np.ndarray:
    param = text_format.Parse(text, NoiseParameter())
    return add_noise(image, param, np.random.default_rng(seed))


def test_effects_on_single_pixels() -> None:
    np.testing.assert_array_equal(noisy("inverse: true"), 255 - IMAGE)
    np.testing.assert_array_equal(noisy("posterize: true"), IMAGE // 64 * 64 + 32)
    gray = noisy("decolorize: true").astype(float)
    assert (gray[:, :, 0] == gray[:, :, 2]).all()
    np.testing.assert_allclose(gray[:, :, 0], IMAGE @ [0.114, 0.587, 0.299], atol=1)
    found = noisy("convert_to_hsv: true")
    for before, after in zip(IMAGE[0], found[0], strict=True):
        scaled = np.array(hsv(before)) * [180, 255, 255]
        turn = abs(after[0] - scaled[0])
        assert min(turn, 180 - turn) < 2
        np.testing.assert_allclose(after[1:], scaled[1:], atol=2)


def test_effects_on_neighbours() -> None:
    point = np.zeros((9, 9, 1), np.uint8)
    point[4, 4] = 200
    weights = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    blurred = noisy("gauss_blur: true", point)[1:8, 1:8, 0]
    np.testing.assert_allclose(blurred, 200 * np.outer(weights, weights), atol=1)
    eroded = noisy("erode: true", 255 - point)[3:6, 3:6, 0]
    assert eroded.tolist() == [[255, 55, 255], [55, 55, 55], [255, 55, 255]]


@pytest.mark.parametrize("image", [IMAGE, GRAY])
@pytest.mark.parametrize("effect", ["hist_eq", "clahe"])
def test_histograms(image: np.ndarray, effect: str) -> None:
    dark = image // 4
    found = noisy(f"{effect}: true", dark)
    assert found.shape == dark.shape
    spread = [float(each.astype(float).std()) for each in (dark, found)]
    assert spread[1] > 2 * spread[0] if effect == "hist_eq" else spread[1] > spread[0]


def test_jpeg() -> None:
    smooth = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 3, 2).repeat(64, 0)
    coarse, fine = noisy("jpeg: 5", smooth), noisy("jpeg: 100", smooth)
    errors = [np.abs(each.astype(int) - smooth).mean() for each in (coarse, fine)]
    assert errors[1] < 1 < errors[0]


def test_salt_and_pepper() -> None:
    text = "saltpepper: true saltpepper_param { fraction: 0.25 value: 1 value: 2 value: 3 }"
    image = np.full((40, 40, 3), 100, np.uint8)
    found = noisy(text, image)
    changed = (found != 100).all(2)
    assert (found[changed] == [1, 2, 3]).all()
    # 400 draws of 1600 pixels, some of them twice.
    assert 300 < changed.sum() < 400
    assert (image == 100).all()


@pytest.mark.parametrize(
    ("text", "channels", "message"),
    [
        ("convert_to_lab: true", 3, "convert_to_lab: is not supported: its values are no bytes"),
        ("saltpepper: true", 3, "saltpepper_param.value: given 0 times for images of 3 channel"),
        ("decolorize: true", 1, "decolorize: takes images of 3 channels, these have 1"),
    ],
)
def test_noise_that_cannot_be_made(text: str, channels: int, message: str) -> None:
    with pytest.raises(CaffeError, match=message):
        check_noise(text_format.Parse(text, NoiseParameter()), channels)


@pytest.mark.parametrize(
    ("text", "channels", "message"),
    [
        ("contrast_lower: 2 contrast_upper: 1", 3, "contrast_upper: from 2 to 1 is no range"),
        ("brightness_delta: -1", 3, "brightness_delta: must not be negative"),
        ("hue_prob: 0.5", 1, "hue_prob: takes images of 3 channels, these have 1"),
    ],
)
def test_distortions_that_cannot_be_made(text: str, channels: int, message: str) -> None:
    with pytest.raises(CaffeError, match=message):
        check_distortion(text_format.Parse(text, DistortionParameter()), channels)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prob: 0.25 contrast: true", {"contrast_prob": 0.25}),
        (
            "prob: 0.25 all_effects: true hue: false",
            dict.fromkeys(
                [
                    "brightness_prob",
                    "contrast_prob",
                    "hue_prob",
                    "saturation_prob",
                    "random_order_prob",
                ],
                0.25,
            ),
        ),
        ("all_effects: false brightness: true", {}),
        ("hue_prob: 0.5", {"hue_prob": 0.5}),
    ],
)
def test_distortions_as_deepdetect_asks_for_them(text: str, expected: dict[str, float]) -> None:
    param = in_ssd_form(text_format.Parse(text, DistortionParameter()))
    found = {f.name: v for f, v in param.ListFields() if f.name.endswith("_prob") and v}
    assert found == expected


def test_distortions_of_both_kinds() -> None:
    param = text_format.Parse("prob: 0.5 hue_prob: 0.5", DistortionParameter())
    with pytest.raises(CaffeError, match="hue_prob: cannot be given with settings of DeepDetect"):
        in_ssd_form(param)


def test_noise_as_deepdetect_asks_for_it() -> None:
    def made(text: str, seed: int = 0) -> np.ndarray:
        param = text_format.Parse(text, NoiseParameter())
        check_noise(param, 3)
        return add_noise(IMAGE, param, np.random.default_rng(seed))

    # A quality of compression without a probability does nothing, nor do effects not asked for.
    assert made("prob: 0 all_effects: true jpeg: 5 convert_to_lab: true") is IMAGE
    assert made("prob: 1 all_effects: false") is IMAGE
    np.testing.assert_array_equal(made("prob: 1 all_effects: false inverse: true"), 255 - IMAGE)
    results = [made("prob: 0.25 all_effects: false inverse: true", seed) for seed in range(200)]
    turned = sum(bool((result != IMAGE).any()) for result in results)
    assert 30 < turned < 70
    # White has the lightness 100 and no colour; of blue, b is far below 0.
    ends = np.array([[[255, 255, 255], [255, 0, 0]]], np.uint8)
    param = text_format.Parse("prob: 1 all_effects: false convert_to_lab: true", NoiseParameter())
    lab = add_noise(ends, param, np.random.default_rng(0))
    np.testing.assert_array_equal(lab[0], [[100, 0, 0], [32, 79, 0]])
    with pytest.raises(CaffeError, match=r"saltpepper_param.value: given 0 times"):
        made("prob: 0.5 all_effects: true")
