"""Convolutions and inner products by hand: which channels go, and where their constants end up."""

from __future__ import annotations

import numpy as np
import pytest

from tests.export.shrink.build import IMAGES, channels, conv, full, ip, shrunk
from tests.nets import input_layer, layer


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


def test_a_constant_may_need_a_bias() -> None:
    text = IMAGES + conv("a", "data") + conv("b", "a", 2, "kernel_size: 1 bias_term: false")
    model, blobs = full(text)
    blobs["a"][0][0] = 0
    result = shrunk(model)
    assert result.model.definition.param.layer[2].convolution_param.bias_term
    assert [array.shape for array in result.model.blobs[2]] == [(2, 3, 1, 1), (2,)]
    blobs["a"][1][0] = 0
    assert len(shrunk(model).model.blobs[2]) == 1


@pytest.mark.parametrize(
    "kernel",
    ["kernel_size: 3 pad: 1", "kernel_size: 5 stride: 3"],  # which exceeds an input of 4 x 3
)
def test_padding_holds_constants_that_are_not_zero(kernel: str) -> None:
    text = IMAGES + conv("a", "data") + layer("r", "ReLU", "a", "a") + conv("b", "a", 2, kernel)
    model, blobs = full(text)
    blobs["a"][0][:2] = 0
    blobs["a"][1][:] = [1, -1, 1, 1]
    result = shrunk(model)
    assert channels(result.model) == {"a": 3, "b": 2}  # the second is max(0, -1)
    assert result.held == [
        "b (Convolution) keeps 1 idle channel(s): its padding is zero, which their constant is not"
    ]


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
