"""Building nets and running them (`net.cpp`)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Layer, layer_types
from caffe_dns.net import Net
from caffe_dns.net.definition import with_state
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, NetParameter
from caffe_dns.proto.text import parse_text
from tests.nets import DATA, build_log, feed, input_layer, ip, layer, make_net, refused

# What is built ------------------------------------------------------------------------------------


def test_names_and_shapes() -> None:
    text = "name: 'n' " + DATA + ip("a", "data") + layer("relu", "ReLU", "a", "a") + ip("b", "a")
    net = make_net(text)
    assert (net.name, net.inputs, net.outputs) == ("n", ["data", "label"], ["b", "label"])
    assert net.blob_shapes == {"data": (3, 4), "label": (3,), "a": (3, 5), "b": (3, 5)}
    assert list(net.params) == ["a", "b"]
    assert net.layer("relu") is net.steps[2].layer
    assert net.layer("gone") is None
    assert all(layer.training for layer in net.children())
    assert not any(layer.training for layer in make_net(text, TEST).children())


def test_a_layers_own_phase_comes_first() -> None:
    net = make_net(DATA + layer("d", "Dropout", "data", "d", "phase: TEST"))
    assert [step.layer.training for step in net.steps] == [True, False]


def test_outputs_come_by_name() -> None:
    assert make_net(input_layer(b=(1,), a=(1,), B=(1,), a2=(1,))).outputs == ["B", "a", "a2", "b"]


def test_layers_are_children_whatever_their_names() -> None:
    """Many of one name, too: to look for the next free name takes no longer with each of them."""
    names = ["loss", "a.b", "a_b", "", "r", "r", "r", "r", "r_2"]
    text = DATA + "".join(layer(name, "ReLU", "data", "data") for name in names)
    children = [name for name, _ in make_net(text).named_children()]
    expected = ["loss_", "a_b", "a_b_", "_", "r", "r_", "r_2", "r_3", "r_2_"]
    assert children == ["in", *expected]


def test_no_text_is_made_of_a_definition_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes several times the definition's size in memory."""
    monkeypatch.setattr("caffe_dns.net.net.to_text", None)
    with log.silenced:
        make_net(DATA).close()


def test_the_log_of_building() -> None:
    text = DATA + ip("a", "data") + layer("relu", "ReLU", "a", "a")
    text += layer("loss", "SoftmaxWithLoss", "a label", "loss", "loss_weight: 0.25")
    messages = build_log(text)
    assert messages[0].startswith("Initializing net from parameters: \nstate {\n  phase: TRAIN\n")
    assert messages[1:] == [
        "Creating layer in",
        "Creating Layer in",
        "in -> data",
        "in -> label",
        "Setting up in",
        "Top shape: 3 4 (12)",
        "Top shape: 3 (3)",
        "Memory required for data: 60",
        "Creating layer a",
        "Creating Layer a",
        "a <- data",
        "a -> a",
        "Setting up a",
        "Top shape: 3 5 (15)",
        "Memory required for data: 120",
        "Creating layer relu",
        "Creating Layer relu",
        "relu <- a",
        "relu -> a (in-place)",
        "Setting up relu",
        "Top shape: 3 5 (15)",
        "Memory required for data: 180",
        "Creating layer loss",
        "Creating Layer loss",
        "loss <- a",
        "loss <- label",
        "loss -> loss",
        "Creating layer loss",
        "Setting up loss",
        "Top shape: (1)",
        "    with loss weight 0.25",
        "Memory required for data: 184",
        "loss needs backward computation.",
        "relu needs backward computation.",
        "a needs backward computation.",
        "in does not need backward computation.",
        "This network produces output loss",
        "Network initialization done.",
    ]


def test_a_loss_without_a_top_gets_one() -> None:
    text = input_layer(data=(3, 4), b=(3, 5)) + ip("a", "data")
    text += layer("loss", "EuclideanLoss", "a b", "")
    assert "loss -> (automatic)" in build_log(text)
    net = make_net(text)
    assert net.outputs == []
    assert net.loss(net(feed(net))).detach() > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a net definition: it has no layers"),
        (
            layer("x", "Silence", "", "", "include { phase: TEST }"),
            "no layer is left for the phase",
        ),
        (DATA + ip("a", "gone"), "Unknown bottom blob 'gone' (layer 'a', bottom index 0)"),
        (
            DATA + ip("a", "data") + ip("b", "a") + ip("a2", "b").replace("top: 'a2'", "top: 'a'"),
            "Top blob 'a' produced by multiple sources",
        ),
        # The blob has been split, so that the layer is not in place any more.
        (
            DATA + ip("a", "data") + layer("relu", "ReLU", "data", "data"),
            "layer 'relu': top: Top blob 'data' produced by multiple sources",
        ),
        (layer("x", "InerProduct", "", "x"), "unknown layer type 'InerProduct' (did you mean"),
        (DATA + ip("a", "data", "loss_weight: 1 loss_weight: 1"), "given 2 time(s) for 1 top(s)"),
        (DATA + ip("a", "data", "propagate_down: true " * 2), "given 2 times for 1 bottom(s)"),
        (DATA + layer("r", "ReLU", "data label", "r"), "takes 1 bottom blob(s), the definition"),
        (
            DATA + layer("s", "SoftmaxWithLoss", "data label", "a b c"),
            "takes 1 to 2 top blob(s), the definition gives 3",
        ),
        (
            DATA
            + layer("c", "Convolution", "data label", "c", "convolution_param { num_output: 1 }"),
            "makes as many tops as it has bottoms, but there are 2 bottoms and 1 tops",
        ),
    ],
)
def test_wrong_definitions(text: str, message: str) -> None:
    assert message in refused(text)


def test_an_error_names_file_line_and_layer() -> None:
    text = "name: 'n'\n" + DATA + "\n" + ip("a", "data", "include { phase: TEST }") + ip("a", "b")
    parsed = parse_text(text, NetParameter)
    with pytest.raises(CaffeError) as caught:
        Net(
            with_state(parsed.message, TRAIN),
            file="net.prototxt",
            positions=parsed.positions,
        )
    assert str(caught.value).startswith("net.prototxt:5: layer 'a': bottom: Unknown bottom blob")


# Running ------------------------------------------------------------------------------------------


def test_blobs_after_in_place_layers_are_their_results() -> None:
    text = input_layer(data=(3, 4)) + ip("a", "data") + layer("tanh", "TanH", "a", "a")
    net = make_net(text + layer("power", "Power", "a", "a", "power_param { shift: -1 }"))
    blobs = net(feed(net))
    assert list(blobs) == ["data", "a"]
    weight, bias = net.params["a"][:2]
    expected = (feed(net)["data"] @ weight.T + bias).tanh() - 1
    torch.testing.assert_close(blobs["a"], expected)


def test_inputs_of_other_kinds_are_converted() -> None:
    net = make_net(input_layer(data=(3, 4)) + ip("a", "data"))
    values = np.arange(12).reshape(3, 4)
    expected = net({"data": torch.arange(12.0).reshape(3, 4)})["a"]
    for array in (values, values.astype(np.float64), values.astype(np.uint8)):
        torch.testing.assert_close(net({"data": array})["a"], expected)
    assert net.double()({"data": values})["a"].dtype == torch.float64
    plain = make_net(input_layer(data=(3, 4)) + layer("r", "ReLU", "data", "r"))
    assert plain({"data": values})["r"].dtype == torch.float32
    assert plain({"data": values.astype(np.float64)})["r"].dtype == torch.float64


def test_a_layer_in_place_gives_the_inputs_no_other_shape() -> None:
    """The shape of the blob is then that of the layer's top, which is none for what comes in."""
    net = make_net(DATA + ip("data", "data"))
    assert net.blob_shapes["data"] == (3, 5)
    assert net({"data": torch.ones(3, 4), "label": torch.ones(3)})["data"].shape == (3, 5)
    with pytest.raises(
        CaffeError, match="layer 'data': the weight takes 4 inputs, the bottom has 5"
    ):
        net({"data": torch.ones(3, 5), "label": torch.ones(3)})


def test_inputs_may_be_of_another_size() -> None:
    net = make_net(DATA + ip("a", "data") + layer("loss", "SoftmaxWithLoss", "a label", "loss"))
    blobs = net({"data": torch.rand(7, 4), "label": torch.ones(7)})
    assert blobs["a"].shape == (7, 5)
    assert net.blob_shapes["a"] == (7, 5)
    message = "layer 'a': the weight takes 4 inputs, the bottom has 6"
    with pytest.raises(CaffeError, match=message):
        net({"data": torch.rand(7, 6), "label": torch.ones(7)})
    with pytest.raises(CaffeError, match="layer 'loss': the data and label blobs differ"):
        net({"data": torch.rand(7, 4), "label": torch.ones(6)})
    assert net.blob_shapes["a"] == (7, 5)


def test_passes_count_forward_passes() -> None:
    net = make_net(input_layer(data=(3, 4)) + layer("d", "Dropout", "data", "d"))
    values = torch.ones(3, 4)
    first, second = net({"data": values})["d"], net({"data": values})["d"]
    assert net.context.passes == 2
    assert not torch.equal(first, second)
    net.context.passes = 0
    assert torch.equal(net({"data": values})["d"], first)


class Closing(Layer):
    """A layer that notes when it is closed, and may fail at that."""

    bottoms = (0, 0)
    tops = (0, 0)
    closed: ClassVar[list[str]] = []

    def reshape(self, bottom_shapes: object) -> list[tuple[int, ...]]:
        return []

    def close(self) -> None:
        self.closed.append(self.name)
        if self.name == "second":
            raise CaffeError("cannot be closed")


def test_close_reaches_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layer_types._entries, "Closing", Closing)
    net = make_net("".join(layer(name, "Closing", "", "") for name in ("first", "second", "third")))
    with pytest.raises(CaffeError, match="cannot be closed"):
        net.close()
    assert sorted(Closing.closed) == ["first", "second", "third"]


def test_models_show_the_weight_of_losses() -> None:
    text = DATA + ip("a", "data") + layer("loss", "SoftmaxWithLoss", "a label", "loss p")
    net = make_net(text)
    assert [list(step.layer.param.loss_weight) for step in net.steps] == [[], [], [1, 0]]


def test_one_input_needs_no_name() -> None:
    net = make_net(input_layer(data=(1, 3)) + layer("r", "ReLU", "data", "r"))
    values = torch.tensor([[-1.0, 0, 2]])
    for blobs in (net(values), net(values.numpy()), net(data=values), net({"data": values})):
        assert blobs["r"].tolist() == [[0, 0, 2]]
    with pytest.raises(CaffeError, match="unknown input 'dota'; the inputs of this net are data"):
        net(dota=values)
    with pytest.raises(ValueError, match="here, not as a list"):
        net(values.tolist())


def test_inputs_of_any_name() -> None:
    net = make_net(input_layer(self=(1,), inputs=(1,)) + layer("s", "Silence", "self inputs", ""))
    blobs = net(torch.ones(1), inputs=torch.zeros(1))
    assert (float(blobs["self"]), float(blobs["inputs"])) == (1, 0)


@pytest.mark.parametrize("readers", [1, 2])
def test_an_input_without_a_shape_is_named_where_a_layer_needs_it(readers: int) -> None:
    text = "layer { name: 'i' type: 'Input' top: 'x' top: 'data' }"
    text += layer("r", "ReLU", "data", "r") * (readers - 1)
    assert refused(text + ip("ip", "data")) == (
        "layer 'ip': inner_product_param.axis: axis 1 is out of range for a blob with 0 axes "
        "(input 'data' has no shape: give it one by input_param "
        "{ shape { dim: 1 dim: 3 dim: 227 dim: 227 } }, or --shape 3,227,227)"
    )


def test_layers_are_modules_by_their_names() -> None:
    text = input_layer(data=(1, 3)) + "".join(
        ip(name, bottom)
        for name, bottom in (("a/b", "data"), ("c.1", "a/b"), ("c_1", "c.1"), ("loss", "c_1"))
    )
    net = make_net(text)
    assert [name for name, _ in net.named_children()] == ["in", "a/b", "c_1", "c_1_", "loss_"]
    assert net.get_submodule("loss_") is net.layer("loss")


def test_inputs_come_by_name() -> None:
    net = make_net(input_layer(data=(1, 3), more=(1,)) + layer("r", "ReLU", "data", "r"))
    with pytest.raises(CaffeError) as caught:
        net(torch.rand(1, 3))
    assert str(caught.value) == (
        "inputs come by name, {'data': ..., 'more': ...} here, not as a Tensor"
    )
