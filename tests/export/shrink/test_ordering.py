"""Channels in another order: the same outputs, and the fullest rows first where they may move."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.shrink import put_in_order, shrink
from tests.export.shrink.build import assert_same_outputs, conv, ip, pruned_model
from tests.nets import input_layer, layer

CHAIN = (
    input_layer(data=(2, 3, 9, 9))
    + conv("conv1", "data", 6)
    + layer("bn", "BatchNorm", "conv1", "conv1")
    + layer("scale", "Scale", "conv1", "conv1", "scale_param { bias_term: true }")
    + layer("prelu", "PReLU", "conv1", "conv1")
    + layer("pool", "Pooling", "conv1", "pool", "pooling_param { kernel_size: 2 stride: 2 }")
    + conv("conv2", "pool", 7, "kernel_size: 2")
    + layer("relu", "ReLU", "conv2", "relu")
    + ip("ip1", "relu", 9)
    + layer("tanh", "TanH", "ip1", "ip1")
    + ip("ip2", "ip1")
)
#: Where rows have to stay: behind groups, at outputs, before a concatenation, in a sum of two.
HELD = (
    input_layer(data=(2, 4, 6, 6))
    + conv("a", "data", 4, "kernel_size: 3 group: 2")
    + conv("b", "data")
    + layer("sum", "Eltwise", "a b", "sum")
    + conv("c", "sum", 5, "kernel_size: 1")
    + conv("d", "data", 5)
    + layer("both", "Concat", "c d", "both")
    + ip("e", "both")
)


def rows(model: UnmaskedModel, name: str) -> list[int]:
    """How many weights and biases each row of a layer has."""
    names = [entry.name for entry in model.definition.param.layer]
    weight, bias = model.blobs[names.index(name)]
    counts: list[int] = ((weight != 0).reshape(len(weight), -1).sum(1) + (bias != 0)).tolist()
    return counts


@pytest.mark.parametrize("seed", range(3))
def test_the_fullest_rows_come_first(seed: int) -> None:
    given = pruned_model(CHAIN, seed)
    ordered = put_in_order(given)
    assert_same_outputs(given, ordered)
    assert ordered.definition.param == given.definition.param
    for name in ("conv1", "conv2", "ip1"):
        assert rows(ordered, name) == sorted(rows(given, name), reverse=True)
        assert rows(ordered, name) != rows(given, name)
    assert rows(ordered, "ip2") == rows(given, "ip2")
    assert_same_outputs(given, put_in_order(shrink(given).model))


def test_what_is_held_stays() -> None:
    given = pruned_model(HELD)
    for arrays, before in zip(put_in_order(given).blobs, given.blobs, strict=True):
        for array, other in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(array, other)


def test_shared_weights_stay() -> None:
    given = pruned_model(CHAIN.replace("name: 'ip1'", "param { name: 'w' } name: 'ip1'"))
    assert given.definition.param.layer[-3].param[0].name == "w"
    assert put_in_order(given) is given
