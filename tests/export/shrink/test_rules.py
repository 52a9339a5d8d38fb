"""Each rule by hand: which channels go, where their constants end up, and what stays."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.shrink import Shrunk, shrink
from tests.export.shrink.build import assert_same_outputs, channels, pruned_model
from tests.nets import input_layer, layer

Weights = dict[str, list[np.ndarray]]
IMAGES = input_layer(data=(2, 3, 6, 5))


def conv(name: str, bottom: str, outputs: int = 4, more: str = "kernel_size: 3") -> str:
    return layer(
        name, "Convolution", bottom, name, f"convolution_param {{ num_output: {outputs} {more} }}"
    )


def ip(name: str, bottom: str, outputs: int = 4, more: str = "") -> str:
    return layer(
        name,
        "InnerProduct",
        bottom,
        name,
        f"inner_product_param {{ num_output: {outputs} {more} }}",
    )


def full(text: str) -> tuple[UnmaskedModel, Weights]:
    """A model in which nothing is zero, and its arrays by layer, to put zeros in."""
    model = pruned_model(text, kept=1.0)
    generator = np.random.default_rng(5)
    for arrays in model.blobs:
        for index, array in enumerate(arrays):
            if array.ndim and not (len(arrays) >= 3 and index):  # not what a variance is made of
                array[...] = generator.uniform(0.5, 1.5, array.shape)
    return model, dict(
        zip((la.name for la in model.definition.param.layer), model.blobs, strict=True)
    )


def shrunk(model: UnmaskedModel, text: str = "") -> Shrunk:
    """The shrunk model, held to the outputs of the given one, which stays as it was."""
    before = [[array.copy() for array in arrays] for arrays in model.blobs]
    result = shrink(model)
    for old, new in zip(before, model.blobs, strict=True):
        for one, other in zip(old, new, strict=True):
            np.testing.assert_array_equal(one, other)
    assert_same_outputs(model, result.model)
    return result


def test_units_without_inputs_leave_their_constant() -> None:
    model, blobs = full(IMAGES + ip("a", "data") + ip("b", "a"))
    blobs["a"][0][1] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 3, "b": 4}
    expected = blobs["b"][1] + blobs["b"][0][:, 1] * blobs["a"][1][1]
    np.testing.assert_allclose(result.model.blobs[2][1], expected, rtol=1e-6)
    assert result.lost == ["a: 3 of 4 outputs"]
    assert result.held == []


def test_units_without_readers_go_with_their_inputs() -> None:
    model, blobs = full(IMAGES + conv("a", "data") + conv("b", "a", 5) + ip("c", "b"))
    blobs["c"][0].reshape(4, 5, -1)[:, 2] = 0  # nobody reads the third filter of b
    blobs["b"][0][[0, 1, 3, 4], 1] = 0  # which alone reads the second of a
    assert channels(shrunk(model).model) == {"a": 3, "b": 4, "c": 4}


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


def test_a_constant_may_need_a_bias() -> None:
    text = IMAGES + conv("a", "data") + conv("b", "a", 2, "kernel_size: 1 bias_term: false")
    model, blobs = full(text)
    blobs["a"][0][0] = 0
    result = shrunk(model)
    assert result.model.definition.param.layer[2].convolution_param.bias_term
    assert [array.shape for array in result.model.blobs[2]] == [(2, 3, 1, 1), (2,)]
    blobs["a"][1][0] = 0
    assert len(shrunk(model).model.blobs[2]) == 1


def test_padding_holds_constants_that_are_not_zero() -> None:
    text = (
        IMAGES
        + conv("a", "data")
        + layer("r", "ReLU", "a", "a")
        + conv("b", "a", 2, "kernel_size: 3 pad: 1")
    )
    model, blobs = full(text)
    blobs["a"][0][:2] = 0
    blobs["a"][1][:] = [1, -1, 1, 1]
    result = shrunk(model)
    assert channels(result.model) == {"a": 3, "b": 2}  # the second is max(0, -1)
    assert result.held == [
        "b (Convolution) keeps 1 idle channel(s): its padding is zero, which their constant is not"
    ]


@pytest.mark.parametrize(("pool", "left"), [("MAX", 3), ("AVE", 4)])
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


def test_axes_of_inner_products() -> None:
    # a: for each row of each image; b: all from the channels on, transposed.
    text = IMAGES + conv("a", "data") + ip("b", "a", 6, "transpose: true") + ip("c", "b", 2)
    model, blobs = full(text)
    blobs["a"][0][2] = 0
    blobs["b"][0][:, 4] = 0
    blobs["c"][0][:, 0] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 3, "b": 4, "c": 2}
    assert result.model.blobs[2][0].shape == (3 * 4 * 3, 4)
    text = (
        input_layer(data=(2, 3, 5))
        + ip("a", "data", 4, "axis: 2")
        + ip("b", "a", 3, "axis: 2")
        + ip("c", "b", 2)
    )
    model, blobs = full(text)
    blobs["a"][0][1] = 0
    blobs["c"][0].reshape(2, 3, 3)[:, :, 2] = 0
    assert channels(shrunk(model).model) == {"a": 3, "b": 2, "c": 2}
    # The channels of c are not what d multiplies.
    text = IMAGES + conv("c", "data") + ip("d", "c", 3, "axis: 2")
    model, blobs = full(text)
    blobs["c"][0][1] = 0
    assert shrunk(model).held[0].startswith("d (InnerProduct) keeps 1 idle")


def test_groups_stay_alike() -> None:
    text = (
        IMAGES + conv("a", "data", 6) + conv("b", "a", 4, "kernel_size: 1 group: 2") + ip("c", "b")
    )
    model, blobs = full(text)
    blobs["a"][0][:2] = 0
    result = shrunk(model)
    assert channels(result.model)["a"] == 6
    assert result.held
    blobs["a"][0][5] = 0  # one from the other group as well
    assert channels(shrunk(model).model)["a"] == 4
    blobs["c"][0].reshape(4, 4, -1)[:, :2] = 0  # and the first group is read by nobody
    result = shrunk(model)
    assert channels(result.model) == {"a": 2, "b": 2, "c": 4}
    assert result.model.definition.param.layer[2].convolution_param.group == 1


def test_depthwise_filters_go_with_their_channel() -> None:
    depthwise = "kernel_size: 3 pad: 1 group: 4"
    text = (
        IMAGES
        + conv("a", "data")
        + layer("r", "ReLU", "a", "a")
        + conv("dw", "a", 8, depthwise)
        + conv("c", "dw", 2, "kernel_size: 1")
    )
    model, blobs = full(text)
    blobs["a"][0][1] = 0
    blobs["a"][1][1] = -1
    blobs["c"][0][:, 4:6] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 2, "dw": 4, "c": 2}
    assert result.model.definition.param.layer[3].convolution_param.group == 2


def test_deconvolution() -> None:
    more = "kernel_size: 3 stride: 2 group: 2"
    deconv = layer("b", "Deconvolution", "a", "b", f"convolution_param {{ num_output: 6 {more} }}")
    model, blobs = full(IMAGES + conv("a", "data") + deconv + conv("c", "b", 2, "kernel_size: 1"))
    blobs["a"][0][[0, 3]] = 0
    assert channels(shrunk(model).model)["a"] == 4
    blobs["a"][1][[0, 3]] = 0
    assert channels(shrunk(model).model)["a"] == 2
    blobs["c"][0][:, [1, 4, 5]] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 2, "b": 4, "c": 2}


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


def test_concat_and_slice() -> None:
    text = (
        IMAGES
        + conv("a", "data")
        + conv("b", "data", 6)
        + layer("j", "Concat", "a b", "j")
        + layer("s", "Slice", "j", "x y")
        + conv("c", "x", 2)
        + conv("d", "y", 2)
    )
    model, blobs = full(text)
    blobs["a"][0][1] = 0  # of x, the first five
    blobs["c"][0][:, 4] = 0  # which is b's first
    blobs["d"][0][:, [1, 3]] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 3, "b": 3, "c": 2, "d": 2}
    assert list(result.model.definition.param.layer[4].slice_param.slice_point) == [3]


def test_concat_and_slice_along_other_axes() -> None:
    text = (
        IMAGES
        + conv("a", "data")
        + conv("b", "data")
        + layer("j", "Concat", "a b", "j", "concat_param { axis: 2 }")
        + layer("s", "Slice", "j", "x y z", "slice_param { axis: 2 slice_point: 1 slice_point: 5 }")
        + conv("c", "x", 2, "kernel_size: 1")
        + conv("d", "y", 2, "kernel_size: 1")
        + layer("quiet", "Silence", "z", "")
    )
    model, blobs = full(text)
    blobs["a"][0][:2] = 0
    blobs["b"][0][:2] = 0
    blobs["b"][1][0] = blobs["a"][1][0]  # the same constant in all places; the second is not
    blobs["c"][0][:, 3] = 0
    blobs["d"][0][:, 3] = 0
    assert channels(shrunk(model).model) == {"a": 2, "b": 2, "c": 2, "d": 2}


def test_flatten_reshape_dropout_and_split() -> None:
    text = (
        IMAGES
        + conv("a", "data")
        + layer("x2", "Split", "a", "u v")
        + layer("flat", "Flatten", "u", "flat")
        + layer("drop", "Dropout", "flat", "flat")
        + layer(
            "shape", "Reshape", "v", "shape", "reshape_param { shape { dim: 0 dim: 4 dim: -1 } }"
        )
        + layer("row", "Reshape", "shape", "row", "reshape_param { shape { dim: 0 dim: 48 } }")
        + ip("b", "flat")
        + ip("c", "row")
    )
    model, blobs = full(text)
    blobs["a"][0][1] = 0
    for name in "bc":
        blobs[name][0].reshape(4, 4, -1)[:, 3] = 0
    blobs["b"][0][0] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 2, "b": 4, "c": 4}
    dims = [list(la.reshape_param.shape.dim) for la in result.model.definition.param.layer[5:7]]
    assert dims == [[0, 2, -1], [0, 24]]
    # After flattening, every entry is a unit; some of those of a filter are read by nobody.
    blobs["b"][0].reshape(4, 4, -1)[:, :, 1] = 0
    assert channels(shrunk(model).model)["a"] == 2


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


def test_shared_weights_stay_shared_where_they_can() -> None:
    def shared(name: str, bottom: str) -> str:
        return ip(name, bottom).replace(
            "inner_product_param", "param { name: 'w' } param { name: 'b' } inner_product_param"
        )

    text = (
        IMAGES.replace("top: 'data'", "top: 'data' top: 'more'")
        + shared("a", "data")
        + shared("b", "more")
        + ip("c", "a")
        + ip("d", "b")
    )
    model, blobs = full(text)
    blobs["b"] = model.blobs[2] = blobs["a"]
    blobs["a"][0][1] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 3, "b": 3, "c": 4, "d": 4}
    assert [[p.name for p in la.param] for la in result.model.definition.param.layer[1:3]] == [
        ["w", "b"]
    ] * 2
    blobs["c"][0][:, 2] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 2, "b": 3, "c": 4, "d": 4}
    assert [p.name for p in result.model.definition.param.layer[2].param] == ["", ""]


def test_one_unit_stays_where_none_is_needed() -> None:
    model, blobs = full(
        IMAGES + conv("a", "data") + conv("b", "a") + ip("c", "b") + ip("out", "data")
    )
    blobs["c"][0][:] = 0
    assert channels(shrunk(model).model) == {"a": 1, "b": 1, "c": 4, "out": 4}


def test_permute_and_prior_boxes() -> None:
    text = (
        IMAGES
        + conv("a", "data")
        + layer("p", "Permute", "a", "p", "permute_param { order: 0 order: 2 order: 3 order: 1 }")
        + layer("f", "Flatten", "p", "f")
        + layer("box", "PriorBox", "a data", "box", "prior_box_param { min_size: 2 }")
        + ip("b", "f")
    )
    model, blobs = full(text)
    blobs["a"][0][1] = 0
    blobs["b"][0].reshape(4, -1, 4)[:, :, 3] = 0
    result = shrunk(model)
    assert channels(result.model) == {"a": 2, "b": 4}
    expected = blobs["b"][1] + blobs["b"][0][:, 1::4].sum(1) * blobs["a"][1][1]
    np.testing.assert_allclose(result.model.blobs[5][1], expected, rtol=1e-6)


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
