"""caffe.io.Transformer: images to inputs and back."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_dns.pycaffe.images import resize_image
from caffe_dns.pycaffe.transformer import Transformer

IMAGE = np.random.default_rng(0).uniform(size=(6, 5, 3)).astype(np.float32)


def complete() -> Transformer:
    transformer = Transformer({"data": (10, 3, 6, 5)})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_channel_swap("data", (2, 1, 0))
    transformer.set_raw_scale("data", 255)
    transformer.set_mean("data", np.array([10.0, 20.0, 30.0]))
    transformer.set_input_scale("data", 0.5)
    return transformer


def test_all_steps() -> None:
    given = IMAGE.copy()
    blob = complete().preprocess("data", given)
    mean = np.array([10, 20, 30]).reshape(3, 1, 1)
    expected = (255 * IMAGE[:, :, ::-1].transpose(2, 0, 1) - mean) * 0.5
    assert blob.dtype == np.float32 and blob.shape == (3, 6, 5)
    np.testing.assert_allclose(blob, expected, rtol=1e-5)
    assert np.array_equal(given, IMAGE)


def test_back_again() -> None:
    transformer = complete()
    blob = transformer.preprocess("data", IMAGE)
    image = transformer.deprocess("data", blob[np.newaxis])
    np.testing.assert_allclose(image, IMAGE, atol=1e-5)
    assert image.dtype == np.float32  # as in Caffe, though the mean is of float64


def test_inputs_without_a_size() -> None:
    vector = np.arange(7.0)
    assert np.array_equal(Transformer({"data": (2, 7)}).preprocess("data", vector), vector)


def test_no_steps_but_the_size() -> None:
    transformer = Transformer({"data": (1, 3, 4, 3)})
    assert np.array_equal(transformer.preprocess("data", IMAGE), resize_image(IMAGE, (4, 3)))


def test_means_of_every_form() -> None:
    transformer = complete()
    zeros = np.zeros((6, 5, 3), np.float32)
    mean = np.random.default_rng(1).uniform(size=(3, 6, 5))
    for form, expected in (
        (mean, mean),
        (mean[0], mean[:1].repeat(3, 0)),
        (
            mean[:, :3, :4],
            resize_image(mean[:, :3, :4].transpose(1, 2, 0), (6, 5)).transpose(2, 0, 1),
        ),
    ):
        transformer.set_mean("data", form)
        np.testing.assert_allclose(
            transformer.preprocess("data", zeros), -0.5 * expected, atol=1e-6
        )


def test_wrong_settings() -> None:
    transformer = complete()
    with pytest.raises(ValueError, match="'image' is not one of the net inputs: data"):
        transformer.set_raw_scale("image", 1)
    with pytest.raises(ValueError, match="'image' is not one of the net inputs: data"):
        transformer.preprocess("image", IMAGE)
    with pytest.raises(ValueError, match="the order needs 3 entries, not 2"):
        transformer.set_transpose("data", (0, 1))
    with pytest.raises(ValueError, match="the order needs 3 entries, not 4"):
        transformer.set_channel_swap("data", (0, 1, 2, 3))
    with pytest.raises(ValueError, match="the mean needs 3 entries, not 2"):
        transformer.set_mean("data", np.zeros(2))
    with pytest.raises(ValueError, match="the mean has 2 channels, the input 3"):
        transformer.set_mean("data", np.zeros((2, 6, 5)))
    with pytest.raises(ValueError, match="1 to 3 axes, not 4"):
        transformer.set_mean("data", np.zeros((1, 3, 6, 5)))
