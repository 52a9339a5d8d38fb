"""Weights of a caffe.Net: in files, in arrays that a program writes into, and shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import caffe_dns.pycaffe as caffe
from caffe_dns.proto.caffe_pb2 import NetParameter
from tests.oracle import assert_close
from tests.pycaffe.harness import NET, build, filled


@pytest.mark.parametrize("ending", ["caffemodel", "caffemodel.h5"])
def test_saving_and_loading(ending: str) -> None:
    net = filled()
    file = f"saved.{ending}"
    (net.save_hdf5 if ending.endswith("h5") else net.save)(file)
    other = build()
    loaded = [caffe.Net("net.prototxt", file, caffe.TEST), build(weights=file), other]
    other.copy_from(file)
    for copy in loaded:
        for name, blobs in net.params.items():
            for mine, theirs in zip(copy.params[name], blobs, strict=True):
                assert np.array_equal(mine.data, theirs.data)


def test_saved_models_hold_what_was_written_into_arrays() -> None:
    net = filled()
    net.params["ip2"][1].data[...] = [8, 9]
    net.save("saved.caffemodel")
    layers = NetParameter.FromString(Path("saved.caffemodel").read_bytes()).layer
    assert [list(layer.blobs[1].data) for layer in layers if layer.name == "ip2"] == [[8, 9]]


def test_sharing_weights() -> None:
    net, other = filled(), build()
    other.share_with(net)
    net.params["ip1"][0].data[...] = 7
    assert (other.params["ip1"][0].data == 7).all()
    other.forward(x=net.blobs["x"].data, y=net.blobs["y"].data)
    assert_close(other.blobs["prob"].data, net.forward()["prob"], "prob")


def test_shared_parameters_have_one_diff() -> None:
    caffe.set_surgery(False)
    layer = """layer {{ name: '{0}' type: 'InnerProduct' bottom: '{1}' top: '{0}'
        param {{ name: 'w' share_mode: PERMISSIVE }}
        inner_product_param {{ num_output: 4 bias_term: false axis: {2} transpose: {3} }} }}"""
    net = build(
        "force_backward: true layer { name: 'in' type: 'Input' top: 'x' input_param "
        "{ shape { dim: 2 dim: 4 } } }"
        + layer.format("a", "x", 1, "false")
        + layer.format("b", "a", 1, "true"),
        caffe.TRAIN,
    )
    net.params["a"][0].data[...] = np.arange(16).reshape(4, 4)
    assert np.array_equal(net.params["b"][0].data, net.params["a"][0].data)
    x = np.array([[1, 2, 3, 4], [0, 1, 0, 1]], np.float32)
    net.forward(x=x)
    net.backward(b=np.ones((2, 4)))
    a = net.blobs["a"].data
    w = net.params["a"][0].data
    ga = np.ones((2, 4)) @ w.T
    assert_close(net.params["a"][0].diff, ga.T @ x + a.T @ np.ones((2, 4)), "sum of both")
    assert np.array_equal(net.params["b"][0].diff, net.params["a"][0].diff)


def test_a_comma_is_part_of_a_files_name() -> None:
    net = filled()
    net.save("a, b.caffemodel")
    other = build(weights="a, b.caffemodel")
    other.copy_from("a, b.caffemodel")
    assert np.array_equal(other.params["ip1"][0].data, net.params["ip1"][0].data)


def test_nets_that_share_weights_have_their_own_diffs() -> None:
    net, other = filled(), build()
    other.share_with(net)
    x, y = net.blobs["x"].data, net.blobs["y"].data
    net.forward()
    net.backward()
    diff = net.params["ip2"][0].diff.copy()
    other.forward(x=x, y=y)
    assert not other.params["ip2"][0].diff.any()
    for _ in range(2):
        other.backward()
    assert_close(net.params["ip2"][0].diff, diff, "as it was")
    assert_close(other.params["ip2"][0].diff, 2 * diff, "twice")


@pytest.mark.parametrize("how", ["share", "load"])
def test_a_backward_pass_with_other_weights_knows_what_in_place_layers_overwrote(how: str) -> None:
    """As in Caffe, which goes by the tops of the last forward pass and by the weights of now."""
    net, other = filled(), filled()
    net.forward()
    hidden, prob = net.blobs["ip1"].data.copy(), net.blobs["prob"].data.copy()
    other.params["ip2"][0].data[...] *= -3
    if how == "share":
        net.share_with(other)
    else:
        other.save("other.caffemodel")
        net.copy_from("other.caffemodel")
    net.backward()
    scores = 2 * (prob - np.eye(2)[[0, 1, 1, 0]]) / 4
    below = scores @ other.params["ip2"][0].data * (1 - hidden**2)
    assert_close(net.blobs["x"].diff, below @ other.params["ip1"][0].data, "x")


def test_a_backward_pass_with_other_weights_counts_no_batch() -> None:
    net = build(
        NET.replace("'TanH' bottom: 'ip1' top: 'ip1'", "'BatchNorm' bottom: 'ip1' top: 'bn'"),
        caffe.TRAIN,
    )
    net.blobs["x"].data[...] = np.random.default_rng(3).standard_normal((4, 3))
    net.forward()
    counted = [blob.data.copy() for blob in net.params["tanh"]]
    assert counted[2] == 1
    net.save("saved.caffemodel")
    net.copy_from("saved.caffemodel")
    net.backward()
    for blob, before in zip(net.params["tanh"], counted, strict=True):
        assert np.array_equal(blob.data, before)
