"""Layers that put channels elsewhere, by hand: which channels go on either side."""

from __future__ import annotations

import numpy as np

from tests.export.shrink.build import IMAGES, channels, conv, full, ip, shrunk
from tests.nets import layer


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
