"""Layers that work on channels by themselves, by hand: what goes through them, and what stays."""

from __future__ import annotations

import numpy as np
import pytest

from tests.export.shrink.build import IMAGES, channels, conv, full, ip, shrunk
from tests.nets import layer


def test_a_constant_goes_through_nonlinearities() -> None:
    text = (
        IMAGES
        + conv("a", "data")
        + layer("t", "TanH", "a", "t")
        + layer("p", "Power", "t", "t", "power_param { shift: 0.5 scale: 2 power: 2 }")
        + conv("b", "t", 2)
    )
    model, blobs = full(text)
    blobs["a"][0][3] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 3, "b": 2}
    constant = (0.5 + 2 * np.tanh(blobs["a"][1][3])) ** 2
    expected = blobs["b"][1] + blobs["b"][0][:, 3].sum((1, 2)) * constant
    np.testing.assert_allclose(result.model.blobs[4][1], expected, rtol=1e-6)


def test_blobs_of_one_axis() -> None:
    text = (
        IMAGES
        + ip("a", "data", more="axis: 0")
        + layer("s", "Scale", "a", "s", "scale_param { axis: 0 bias_term: true }")
        + layer("t", "TanH", "s", "t")
        + ip("b", "t", 2, "axis: 0")
    )
    model, blobs = full(text)
    blobs["a"][0][3] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 3, "b": 2}
    constant = np.tanh(blobs["s"][0][3] * blobs["a"][1][3] + blobs["s"][1][3])
    expected = blobs["b"][1] + blobs["b"][0][:, 3] * constant
    np.testing.assert_allclose(result.model.blobs[4][1], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("side", "left"), [("pad: 1", 4), ("pad_r: 1", 4), ("pad_t: 1", 4), ("pad_l: 0", 3)]
)
def test_padding_of_convolutions(side: str, left: int) -> None:
    # Zeros around a constant that is none.
    text = IMAGES + conv("a", "data") + conv("b", "a", 2, f"kernel_size: 3 {side}")
    model, blobs = full(text)
    blobs["a"][0][1] = 0
    assert channels(shrunk(model).model) == {"a": left, "b": 2}
    blobs["a"][1][1] = 0
    assert channels(shrunk(model).model) == {"a": 3, "b": 2}


@pytest.mark.parametrize(("pool", "left"), [("MAX", 3), ("AVE", 4), ("AVE_EXC_PAD", 3)])
def test_padding_of_pooling(pool: str, left: int) -> None:
    # Zeros count in an average, and never in a maximum.
    pooling = f"pooling_param {{ pool: {pool} kernel_size: 3 stride: 2 pad: 1 }}"
    model, blobs = full(
        IMAGES
        + conv("a", "data")
        + layer("p", "Pooling", "a", "p", pooling)
        + conv("b", "p", 2, "kernel_size: 1")
    )
    blobs["a"][0][1] = 0
    assert channels(shrunk(model).model) == {"a": left, "b": 2}
    blobs["a"][1][1] = 0
    assert channels(shrunk(model).model) == {"a": 3, "b": 2}


def test_batch_norm_scale_bias_and_prelu() -> None:
    text = (
        IMAGES
        + conv("a", "data")
        + layer("n", "BatchNorm", "a", "a")
        + layer("s", "Scale", "a", "a", "scale_param { bias_term: true }")
        + layer("p", "PReLU", "a", "a")
        + layer("q", "PReLU", "a", "a", "prelu_param { channel_shared: true }")
        + layer("b", "Bias", "a", "a")
        + conv("c", "a", 2)
    )
    model, blobs = full(text)
    blobs["a"][0][0] = 0
    blobs["s"][0][2] = 0  # what comes before does not matter
    result = shrunk(model)
    assert channels(result.model) == {"a": 2, "c": 2}
    shapes = [[array.shape for array in arrays] for arrays in result.model.blobs[2:7]]
    assert shapes == [[(2,), (2,), (1,)], [(2,), (2,)], [(2,)], [()], [(2,)]]


def test_scale_by_another_blob_and_over_places() -> None:
    gate = (
        layer("g", "Pooling", "a", "g", "pooling_param { pool: AVE global_pooling: true }")
        + layer("f", "Flatten", "g", "f")
        + ip("e", "f")
        + layer("s", "Scale", "a e", "s", "scale_param { axis: 0 }")
    )
    model, blobs = full(IMAGES + conv("a", "data") + gate + conv("c", "s", 2))
    blobs["a"][0][1] = 0
    blobs["e"][0][:, 2] = 0
    blobs["c"][0][:, 3] = 0
    # The second is not constant after a factor that is not; the last is needed for the factors.
    assert channels(shrunk(model).model) == {"a": 4, "e": 4, "c": 2}
    blobs["e"][0][1] = 0
    blobs["e"][0][:, 3] = 0
    assert channels(shrunk(model).model) == {"a": 2, "e": 2, "c": 2}
    places = layer("s", "Scale", "a", "s", "scale_param { axis: 1 num_axes: 3 }")
    model, blobs = full(IMAGES + conv("a", "data") + places + conv("c", "s", 2))
    blobs["a"][0][1] = 0
    blobs["c"][0][:, 2] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 3, "c": 2}
    assert result.model.blobs[2][0].shape == (3, 4, 3)


def test_sums_go_only_where_all_terms_do() -> None:
    total = layer("sum", "Eltwise", "a b", "sum", "eltwise_param { coeff: 1 coeff: -2 }")
    model, blobs = full(
        IMAGES + conv("a", "data") + conv("b", "data") + total + conv("c", "sum", 2)
    )
    blobs["a"][0][:2] = 0
    blobs["b"][0][1:3] = 0
    blobs["c"][0][:, 3] = 0
    assert channels(shrunk(model).model) == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize("operation", ["PROD", "MAX"])
def test_products_and_maxima(operation: str) -> None:
    both = layer("x", "Eltwise", "a b", "x", f"eltwise_param {{ operation: {operation} }}")
    model, blobs = full(IMAGES + conv("a", "data") + conv("b", "data") + both + conv("c", "x", 2))
    blobs["a"][0][:2] = 0
    blobs["b"][0][1:3] = 0
    assert channels(shrunk(model).model) == {"a": 3, "b": 3, "c": 2}


def test_crop_takes_extents_from_its_second_bottom() -> None:
    text = (
        IMAGES
        + conv("a", "data")
        + conv("b", "a", 3)
        + layer("crop", "Crop", "a b", "crop")
        + conv("c", "crop", 2, "kernel_size: 1")
    )
    model, blobs = full(text)
    blobs["a"][0][2] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 3, "b": 1, "c": 2}


def test_what_mixes_channels_is_named() -> None:
    text = IMAGES + conv("a", "data") + layer("norm", "LRN", "a", "norm") + conv("b", "norm", 2)
    model, blobs = full(text)
    blobs["a"][0][:2] = 0
    result = shrunk(model)
    assert channels(result.model)["a"] == 4
    assert result.held == [
        "norm (LRN) keeps 2 idle channel(s): its type mixes channels, or is not known not to"
    ]
    within = text.replace("'LRN'", "'LRN' lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 }")
    model, blobs = full(within)
    blobs["a"][0][:2] = 0
    blobs["a"][1][0] = 0
    assert channels(shrunk(model).model)["a"] == 3


def test_regions_pool_each_channel() -> None:
    corners = "dummy_data_param { shape { dim: 3 dim: 5 } }"  # the first pixel of the first image
    regions = IMAGES + layer("rois", "DummyData", "", "rois", corners)
    pool = "roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0.1 }"
    text = regions + conv("a", "data") + layer("roi", "ROIPooling", "a rois", "roi", pool)
    text += ip("b", "roi")
    model, blobs = full(text)
    blobs["a"][0][:2] = 0
    blobs["a"][1][0] = 0
    blobs["b"][0].reshape(4, 4, -1)[:, 3] = 0
    # Of the two constants, one is 0, which a region without a pixel gives, too.
    assert channels(shrunk(model).model) == {"a": 2, "b": 4}
