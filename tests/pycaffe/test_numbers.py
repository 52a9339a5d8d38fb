"""Nets by the numbers of layers and blobs, as `_caffe.cpp` has them, and who is told of passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import caffe_dns.pycaffe as caffe
from caffe_dns.errors import CaffeError
from caffe_dns.pycaffe import _caffe, pycaffe
from tests.oracle import assert_close
from tests.pycaffe.harness import build, filled, softmax

LAYERS = ["in", "label", "ip1", "tanh", "ip2", "ip2_ip2_0_split", "prob", "loss"]


def test_names_by_number() -> None:
    net = filled()
    assert net._layer_names == LAYERS
    assert [net._blob_names[i] for i in net._inputs] == ["x", "y"]
    assert [net._blob_names[i] for i in net._outputs] == ["loss", "prob"]
    assert [net._blob_names[i] for i in net._top_ids(5)] == [
        "ip2_ip2_0_split_0",
        "ip2_ip2_0_split_1",
    ]
    assert [net._blob_names[i] for i in net._bottom_ids(7)] == ["ip2_ip2_0_split_1", "y"]
    assert net._top_ids(3) == net._bottom_ids(3)  # in place
    assert net._blobs == list(net.blobs.values())
    assert net._blob_loss_weights == [0] * 7 + [2]
    assert isinstance(net._blobs[0], _caffe.Blob)


def test_a_part_of_a_pass_gives_its_loss() -> None:
    net = filled()
    assert net._forward(0, 4) == 0
    scores, labels = net.blobs["ip2"].data, net.blobs["y"].data.astype(int)
    diffs = {name: blob.diff.copy() for name, blob in net.blobs.items()}
    loss = -np.log(softmax(scores)[np.arange(4), labels]).mean()
    assert_close(np.array(net._forward(5, 7)), np.array(2 * loss), "twice, as the weight says")
    for name, diff in diffs.items():
        assert np.array_equal(net.blobs[name].diff, diff), name
    # The weight is what stands in the diff, in Caffe, too.
    net.blobs["loss"].diff[...] = 3
    assert_close(np.array(net._forward(7, 7)), np.array(3 * loss), "three times")
    net._backward(7, 4)
    prob = softmax(scores)
    prob[np.arange(4), labels] -= 1
    assert_close(net.blobs["ip2"].diff, 3 * prob / 4, "scores")
    assert not net.blobs["x"].diff.any()
    with pytest.raises(CaffeError, match="there is no layer 8; the net has 8"):
        net._forward(0, 8)
    with pytest.raises(CaffeError, match="there is no layer -1"):
        net._backward(3, -1)


def test_callbacks_of_passes() -> None:
    net = filled()
    told: list[tuple[str, int]] = []
    for name in ("before_forward", "after_forward", "before_backward", "after_backward"):
        getattr(net, name)(lambda layer, name=name: told.append((name, layer)))
    net.forward(start="ip1", end="tanh")
    assert told == [
        ("before_forward", 2),
        ("after_forward", 2),
        ("before_forward", 3),
        ("after_forward", 3),
    ]
    told.clear()
    net.forward()
    net.backward()
    forward = [(f"{when}_forward", i) for i in range(8) for when in ("before", "after")]
    backward = [(f"{when}_backward", i) for i in reversed(range(8)) for when in ("before", "after")]
    assert told == forward + backward


def test_a_callback_sees_the_blobs_as_they_are_then() -> None:
    net = filled()
    seen = {}
    net.after_forward(lambda layer: seen.update({layer: net.blobs["ip1"].data.copy()}))
    net.forward()
    assert_close(seen[3], np.tanh(seen[2]), "before and after the layer in place")


def test_layers_can_be_reshaped() -> None:
    net = filled()
    bottom, top = [net.blobs["x"]], [net.blobs["ip1"]]
    net.blobs["x"].reshape(7, 3)
    net.layer_dict["ip1"].reshape(bottom, top)
    assert net.blobs["ip1"].shape == (7, 5)
    weight = net.params["ip1"][0].data.copy()
    net.blobs["x"].reshape(2, 3)
    net.layers[2].setup(bottom, top)
    assert net.blobs["ip1"].shape == (2, 5)
    assert np.array_equal(net.params["ip1"][0].data, weight)
    net.blobs["x"].reshape(2, 4)
    with pytest.raises(CaffeError, match="the weight takes 3 inputs"):
        net.layers[2].reshape(bottom, top)
    net.blobs["x"].reshape(2, 3)
    with pytest.raises(CaffeError, match="has 1 tops, but given are 2"):
        net.layers[2].reshape(bottom, [*top, *top])


@pytest.mark.parametrize("error", ["ValueError('no')", "KeyError('k')", "RuntimeError", "OSError"])
def test_what_python_layers_raise_comes_through(error: str) -> None:
    Path("failing.py").write_text(f"""
import caffe
class Failing(caffe.Layer):
    def setup(self, bottom, top):
        if self.param_str == 'setup':
            raise {error}
    def reshape(self, bottom, top):
        top[0].reshape(1)
    def forward(self, bottom, top):
        raise {error}
    def backward(self, top, propagate_down, bottom):
        raise {error}
""")
    text = (
        "force_backward: true layer { name: 'in' type: 'Input' top: 'x' input_param { shape {"
        " dim: 1 } } } layer { name: 'bad' type: 'Python' bottom: 'x' top: 'y' python_param {"
        " module: 'failing' layer: 'Failing' param_str: '%s' } }"
    )
    kind = eval(error.partition("(")[0])
    with pytest.raises(kind) as caught:
        build(text % "setup")
    assert type(caught.value) is kind
    with pytest.raises(kind) as caught:
        build(text % "forward").forward()
    assert type(caught.value) is kind


def test_modules_that_programs_import() -> None:
    assert pycaffe.Net is _caffe.Net is caffe.Net
    assert pycaffe.SGDSolver is caffe.SGDSolver and _caffe.__version__ == caffe.__version__
    assert set(_caffe.__all__) > set(pycaffe.__all__)
    assert all(hasattr(_caffe, name) for name in _caffe.__all__)


def test_timer() -> None:
    timer = caffe.Timer()
    assert timer.ms == 0
    timer.stop()
    timer.start()
    sum(range(100000))
    timer.stop()
    once = timer.ms
    assert once > 0 and timer.ms == once
    timer.start()
    timer.start()
    assert timer.ms > 0  # stops it
