"""caffe.Net: arrays that are the net's memory, and passes over any part of it."""

from __future__ import annotations

import numpy as np
import pytest

import caffe_dns.pycaffe as caffe
from caffe_dns.errors import CaffeError
from caffe_dns.pycaffe._caffe import BlobVec
from tests.oracle import assert_close
from tests.pycaffe.harness import NET, build, filled, softmax

# Memory -----------------------------------------------------------------------------------------


def test_passes_against_numpy() -> None:
    net = filled()
    (w1, b1), (w2, b2) = ([blob.data for blob in net.params[name]] for name in ("ip1", "ip2"))
    x, y = net.blobs["x"].data, net.blobs["y"].data.astype(int)
    hidden = np.tanh(x @ w1.T + b1)
    prob = softmax(hidden @ w2.T + b2)
    outputs = net.forward(blobs=["ip1"])
    assert sorted(outputs) == ["ip1", "loss", "prob"]
    assert_close(outputs["ip1"], hidden, "ip1")
    assert_close(outputs["prob"], prob, "prob")
    assert_close(outputs["loss"], np.array(-np.log(prob[np.arange(4), y]).mean()), "loss")

    diffs = net.backward(diffs=["ip1", "ip2_ip2_0_split_1"])
    g2 = 2 * (prob - np.eye(2)[y]) / 4
    g1 = (g2 @ w2) * (1 - hidden**2)
    assert sorted(diffs) == ["ip1", "ip2_ip2_0_split_1", "x", "y"]
    assert_close(diffs["ip2_ip2_0_split_1"], g2, "diff of the scores")
    assert_close(diffs["ip1"], g1, "diff before the in-place layer")
    assert_close(diffs["x"], g1 @ w1, "diff of the input")
    assert_close(net.params["ip2"][0].diff, g2.T @ hidden, "diff of the second weight")
    assert_close(net.params["ip1"][1].diff, g1.sum(0), "diff of the first bias")


def test_arrays_stay_the_nets_memory() -> None:
    net = filled()
    prob, weight = net.blobs["prob"].data, net.params["ip2"][0].data
    diff = net.params["ip2"][0].diff
    net.forward()
    net.backward()
    before, gradient = prob.copy(), diff.copy()
    assert gradient.any()
    weight *= 2
    net.forward()
    net.backward()
    assert not np.allclose(prob, before)
    assert not np.allclose(diff, 2 * gradient)
    net.clear_param_diffs()
    assert not diff.any()


def test_param_diffs_add_up() -> None:
    net = filled()
    net.forward()
    net.backward()
    once = net.params["ip1"][0].diff.copy()
    net.backward()
    assert_close(net.params["ip1"][0].diff, 2 * once, "after two passes")


def test_arrays_outlive_the_net() -> None:
    net = filled()
    blobs = [*net.blobs.values(), *net.params["ip1"]]
    del net
    assert np.isfinite(sum(blob.data.sum() + blob.diff.sum() for blob in blobs))


# Parts of a net ---------------------------------------------------------------------------------


def test_forward_from_a_layer_uses_what_stands_in_the_blobs() -> None:
    net = filled()
    net.forward()
    scores = np.array([[0, 1], [3, 0], [2, 2], [5, 1]], np.float32)
    net.blobs["ip2"].data[...] = scores
    outputs = net.forward(start="prob", end="prob")
    assert list(outputs) == ["prob"]
    assert_close(outputs["prob"], softmax(scores), "prob")
    ip1 = net.blobs["ip1"].data.copy()
    assert sorted(net.forward(end="ip1")) == ["ip1"]
    assert not np.allclose(net.blobs["ip1"].data, ip1)  # the in-place layer has not run


def test_backward_between_layers() -> None:
    net = filled()
    net.forward(end="ip2")
    net.blobs["ip2"].diff[...] = [[1, 0], [0, 2], [0, 0], [3, 1]]
    diffs = net.backward(start="ip2", end="ip2")
    assert list(diffs) == ["ip1"]
    assert_close(diffs["ip1"], net.blobs["ip2"].diff @ net.params["ip2"][0].data, "ip1")
    assert not net.params["ip1"][0].diff.any()


def test_backward_without_forward() -> None:
    net = filled()
    net.blobs["ip1"].data[...] = np.arange(20).reshape(4, 5)
    net.blobs["ip2"].diff[...] = 1
    net.backward(start="ip2", end="ip2")
    expected = net.blobs["ip2"].diff.T @ net.blobs["ip1"].data
    assert_close(net.params["ip2"][0].diff, expected, "weight")


def test_diffs_of_outputs() -> None:
    net = filled()
    net.forward()
    prob = net.blobs["prob"].data
    given = np.arange(8, dtype=np.float32).reshape(4, 2)
    net.backward(prob=given, loss=np.zeros(()))
    expected = prob * (given - (given * prob).sum(1, keepdims=True))
    assert_close(net.blobs["ip2"].diff, expected, "scores")


def test_backward_stops_where_nothing_learns() -> None:
    net = build(NET.replace("force_backward: true", "").partition("layer { name: 'loss'")[0])
    net.forward()
    net.blobs["prob"].diff[...] = 1
    net.backward()
    assert not net.params["ip1"][0].diff.any() and not net.blobs["x"].diff.any()


# Shapes and batches -----------------------------------------------------------------------------


@pytest.mark.parametrize("top", ["b", "c"])
def test_what_does_not_depend_on_its_bottom_has_gradient_zero(top: str) -> None:
    net = build(
        "force_backward: true layer { name: 'in' type: 'Input' top: 'a' input_param {"
        " shape { dim: 3 } } } layer { name: 'twice' type: 'Power' bottom: 'a' top: 'b'"
        " power_param { scale: 2 } } layer { name: 'constant' type: 'Power' bottom: 'b' "
        f"top: '{top}' power_param {{ scale: 0 shift: 3 }} }}"
    )
    net.forward()
    net.blobs["a"].diff[...] = 5
    net.blobs[top].diff[...] = 1
    net.backward()
    assert net.blobs["a"].diff.tolist() == [0, 0, 0]


def test_inputs_of_another_shape() -> None:
    net = filled()
    x = np.linspace(-1, 1, 21, dtype=np.float32).reshape(7, 3)
    net.blobs["x"].reshape(7, 3)
    net.blobs["y"].reshape(7)
    net.reshape()
    assert [net.blobs[name].shape for name in ("ip1", "prob", "loss")] == [(7, 5), (7, 2), ()]
    whole = net.forward(x=x, y=np.zeros(7))["prob"].copy()
    net.blobs["x"].reshape(2, 3)
    net.blobs["y"].reshape(2)
    net.blobs["x"].data[...] = x[:2]
    assert_close(net.forward()["prob"], whole[:2], "without reshape")
    assert net.blobs["prob"].num == 2
    net.backward()
    assert net.blobs["x"].diff.shape == (2, 3)
    with pytest.raises(CaffeError, match=r"layer 'ip1': the weight takes 3 inputs"):
        net.blobs["x"].reshape(2, 4)
        net.forward()


def test_more_records_than_a_batch() -> None:
    net = filled()
    generator = np.random.default_rng(5)
    x = generator.standard_normal((10, 3)).astype(np.float32)
    y = generator.integers(2, size=10).astype(np.float32)
    (w1, b1), (w2, b2) = ([blob.data for blob in net.params[name]] for name in ("ip1", "ip2"))
    expected = softmax(np.tanh(x @ w1.T + b1) @ w2.T + b2)
    outputs = net.forward_all(blobs=["ip2"], x=x, y=y)
    assert_close(outputs["prob"], expected, "prob")
    assert outputs["ip2"].shape == (10, 2) and outputs["loss"].shape == (3,)

    net.clear_param_diffs()
    outputs, diffs = net.forward_backward_all(x=x, y=y)
    assert_close(outputs["prob"], expected, "prob")
    assert diffs["x"].shape == (10, 3)
    net.forward(x=x[4:8], y=y[4:8])
    assert_close(net.backward()["x"], diffs["x"][4:8], "diff of the second batch")


def test_records_in_memory() -> None:
    net = build("""
        layer { name: 'data' type: 'MemoryData' top: 'data' top: 'label'
          memory_data_param { batch_size: 2 channels: 3 height: 4 width: 5 } }""")
    data = np.random.default_rng(0).standard_normal((4, 3, 4, 5)).astype(np.float32)
    net.set_input_arrays(data, np.arange(4, dtype=np.float32))
    assert net.blobs["label"].shape == (2,)
    for start in (0, 2, 0):
        net.forward()
        assert np.array_equal(net.blobs["data"].data, data[start : start + 2])
        # Four axes once the net has run, as memory_data_layer.cpp leaves them.
        assert net.blobs["label"].data.tolist() == [[[[start]]], [[[start + 1]]]]
    with pytest.raises(CaffeError, match="whose first layer is a MemoryData layer"):
        build().set_input_arrays(data, np.arange(4))


def test_constants_can_be_replaced() -> None:
    net = build("""
        layer { name: 'dummy' type: 'DummyData' top: 'a' top: 'b'
          dummy_data_param { shape { dim: 2 dim: 3 } data_filler { value: 4 }
            data_filler { type: 'gaussian' } } }
        layer { name: 'power' type: 'Power' bottom: 'a' top: 'c' power_param { scale: 3 } }""")
    assert (net.blobs["a"].data == 4).all()
    net.blobs["a"].data[...] = 5
    assert (net.forward()["c"] == 15).all()
    noise = net.blobs["b"].data.copy()
    assert (net.forward()["c"] == 15).all()
    assert not np.array_equal(net.blobs["b"].data, noise)


# What there is ----------------------------------------------------------------------------------


def test_names() -> None:
    caffe.set_surgery(False)
    net = build()
    assert net.inputs == ["x", "y"] and net.outputs == ["loss", "prob"]
    assert list(net._layer_names) == [
        *("in", "label", "ip1", "tanh", "ip2", "ip2_ip2_0_split", "prob", "loss")
    ]
    assert list(net.layer_dict) == list(net._layer_names)
    assert [layer.type for layer in net.layers][:3] == ["Input", "Input", "InnerProduct"]
    assert list(net.params) == ["ip1", "ip2"]
    assert [blob.shape for blob in net.params["ip1"]] == [(5, 3), (5,)]
    # MobileNet-SSD's merge_bn.py copies what is of just this type.
    assert {type(blobs) for blobs in net.params.values()} == {BlobVec}
    assert net.top_names["tanh"] == net.bottom_names["tanh"] == ["ip1"]
    assert net.bottom_names["loss"] == ["ip2_ip2_0_split_1", "y"]
    assert list(net.blobs)[:3] == ["x", "y", "ip1"]
    assert net.blob_loss_weights["loss"] == 2 and net.blob_loss_weights["prob"] == 0


def test_masks_are_blobs() -> None:
    def blobs(text: str = NET) -> int:
        return len(build(text).params["ip1"])

    fields = ("sparsity_term: true", "threshold: 1", "weight_mask_filler { type: 'constant' }")
    assert blobs() == 2
    for field in fields:  # in any layer of the net
        assert blobs(NET.replace("num_output: 2", f"num_output: 2 {field}")) == 3
    caffe.set_surgery(True)
    assert blobs() == 3
    caffe.set_surgery(False)
    assert blobs(NET.replace("num_output: 5", f"num_output: 5 {fields[1]}")) == 2
    caffe.set_surgery(None)
    assert blobs() == 2


def test_the_first_blob_of_a_split_comes_before_the_next_layers() -> None:
    assert list(build().blobs) == [
        *("x", "y", "ip1", "ip2", "ip2_ip2_0_split_0", "ip2_ip2_0_split_1", "prob", "loss")
    ]


def test_levels_and_stages() -> None:
    text = """
      layer { name: 'a' type: 'DummyData' top: 'a' dummy_data_param { shape { dim: 1 } } }
      layer { name: 'b' type: 'DummyData' top: 'b' dummy_data_param { shape { dim: 1 } }
        include { stage: 'val' min_level: 2 } }"""
    assert list(build(text).blobs) == ["a"]
    assert list(build(text, level=2, stages=["val"]).blobs) == ["a", "b"]


# Python layers ----------------------------------------------------------------------------------


def test_python_layers() -> None:
    text = """
      force_backward: true
      layer { name: 'in' type: 'Input' top: 'x' input_param { shape { dim: 2 dim: 3 dim: 4 } } }
      layer { name: 'slopes' type: 'Python' bottom: 'x' top: 'slopes'
        python_param { module: 'user' layer: 'Slopes' } }
      layer { name: 'times' type: 'Python' bottom: 'slopes' top: 'times'
        python_param { module: 'user' layer: 'Times' param_str: '10' } }"""
    caffe.allow_python_layers(False)
    with pytest.raises(CaffeError, match="wants to run code"):
        build(text)
    caffe.allow_python_layers()
    net = build(text)
    user = net.layer_dict["slopes"]
    assert isinstance(user, caffe.Layer) and user is net.layers[1]
    x = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    assert_close(net.forward(x=x)["times"], 10 * x, "times")
    user.blobs[0].data[...] = [[1], [2], [3]]
    assert net.params["slopes"][0].data.ravel().tolist() == [1, 2, 3]
    net.forward(x=x)
    net.backward(times=np.ones_like(x))
    assert_close(net.blobs["x"].diff, np.broadcast_to([[10], [20], [30]], x.shape), "x")
    assert_close(user.blobs[0].diff, 10 * x.sum((0, 2))[:, None], "blob")


# Wrong use --------------------------------------------------------------------------------------


def test_wrong_arrays() -> None:
    net = filled()
    with pytest.raises(CaffeError, match="the inputs of this net are x, y, but given are z"):
        net.forward(z=np.zeros(3))
    with pytest.raises(CaffeError, match="the outputs of this net are loss, prob, but given are"):
        net.backward(prob=np.zeros((4, 2)))
    with pytest.raises(CaffeError, match=r"'x' has the shape \(4, 3\), .* for it \(5, 3\)"):
        net.forward(x=np.zeros((5, 3)), y=np.zeros(4))
    with pytest.raises(CaffeError, match=r"'x' has the shape \(4, 3\), .* for it \(1, 3\)"):
        net.forward(x=np.zeros((1, 3)), y=np.zeros(4))  # not one record for all of them
    with pytest.raises(CaffeError, match=r"'prob' has the shape \(4, 2\), .* for it \(2,\)"):
        net.backward(prob=np.zeros(2), loss=np.zeros(()))
    with pytest.raises(ValueError, match=r"no layer 'ip3' \(did you mean 'ip"):
        net.forward(end="ip3")
    with pytest.raises(CaffeError, match="no array is given"):
        net.forward_all()
    with pytest.raises(CaffeError, match="'z' is neither an input nor an output"):
        net.forward_backward_all(z=np.zeros(3))


def test_wrong_files() -> None:
    with pytest.raises(RuntimeError, match=r"nowhere\.prototxt"):
        caffe.Net("nowhere.prototxt", caffe.TEST)
    with pytest.raises(CaffeError, match=r"nowhere\.caffemodel"):
        build(weights="nowhere.caffemodel")
