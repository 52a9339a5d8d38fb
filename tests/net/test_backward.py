"""Where a net's gradients go, and what it minimises (`Net::Init`, `Layer::SetLossWeights`)."""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_dns.net import Net
from tests.nets import (
    DATA,
    backward_flags,
    build_log,
    feed,
    input_layer,
    ip,
    layer,
    make_net,
)


def gradients(net: Net) -> dict[str, Tensor | None]:
    """The gradient of each layer's first blob after a forward and a backward pass."""
    loss = net.loss(net(feed(net)))
    if loss.requires_grad:
        loss.backward()
    return {name: blobs[0].grad for name, blobs in net.params.items()}


# Backward -----------------------------------------------------------------------------------------


def two_branches(more_a: str = "", more_b: str = "", more_loss: str = "") -> str:
    """data -> bottom -> (a, b), both into one loss."""
    text = input_layer(data=(3, 4)) + ip("bottom", "data")
    text += ip("a", "bottom", more_a) + ip("b", "bottom", more_b)
    return text + layer("loss", "EuclideanLoss", "a b", "loss", more_loss)


def test_gradients_reach_all_parameters() -> None:
    assert all(value is not None for value in gradients(make_net(two_branches())).values())


def test_nothing_is_computed_below_what_learns() -> None:
    frozen = "param { lr_mult: 0 } param { lr_mult: 0 }"
    text = two_branches(frozen).replace("name: 'bottom'", f"name: 'bottom' {frozen}", 1)
    net = make_net(text)
    flags = backward_flags(net)
    assert flags["bottom"] == (False, [False])
    assert flags["a"] == (False, [False])
    assert flags["b"] == (True, [False])
    assert flags["loss"] == (True, [False, True])
    found = gradients(net)
    assert found["bottom"] is None
    assert found["a"] is None
    assert found["b"] is not None


def test_what_does_not_lead_to_a_loss_gets_no_gradient() -> None:
    text = two_branches() + ip("c", "bottom") + layer("acc", "ArgMax", "c", "arg")
    net = make_net(text)
    assert backward_flags(net)["c"] == (False, [False])
    found = gradients(net)
    assert found["c"] is None
    assert found["bottom"] is not None


def test_propagate_down_false_stops_a_branch() -> None:
    net = make_net(two_branches(more_loss="propagate_down: true propagate_down: false"))
    flags = backward_flags(net)
    assert flags["loss"] == (True, [True, False])
    assert flags["b"] == (False, [False])
    assert flags["bottom"][0]
    found = gradients(net)
    assert found["b"] is None
    whole = gradients(make_net(two_branches()))
    assert found["a"] is not None
    assert whole["a"] is not None
    torch.testing.assert_close(found["a"], whole["a"])
    assert found["bottom"] is not None
    assert not torch.allclose(found["bottom"], whole["bottom"])  # type: ignore[arg-type]


def test_propagate_down_false_on_all_bottoms_stops_the_layers_below() -> None:
    text = DATA + ip("a", "data") + layer("relu", "ReLU", "a", "a")
    text += ip("b", "a", "propagate_down: false")
    net = make_net(text + layer("loss", "SoftmaxWithLoss", "b label", "loss"))
    flags = backward_flags(net)
    assert flags["b"] == (True, [False])
    assert flags["relu"] == flags["a"] == (False, [False])
    assert [value is None for value in gradients(net).values()] == [True, False]


def test_propagate_down_true_asks_for_the_datas_gradient() -> None:
    text = DATA + ip("a", "data", "propagate_down: true")
    net = make_net(text + layer("loss", "SoftmaxWithLoss", "a label", "loss"))
    assert backward_flags(net)["a"] == (True, [True])


def test_force_backward_computes_everything_but_labels() -> None:
    frozen = "param { lr_mult: 0 } param { lr_mult: 0 }"
    text = "force_backward: true " + DATA + ip("a", "data", frozen)
    net = make_net(text + layer("loss", "SoftmaxWithLoss", "a label", "loss"))
    assert backward_flags(net) == {
        "in": (True, []),
        "a": (True, [True]),
        "loss": (True, [True, False]),
    }
    assert gradients(net)["a"] is not None


def test_backward_goes_through_statistics_without_param() -> None:
    text = DATA.replace("dim: 4", "dim: 4 dim: 2 dim: 2")
    norm = "layer {{ name: 'bn' type: 'BatchNorm' bottom: 'data' top: 'bn' {0} }}"
    end = ip("a", "bn") + layer("loss", "SoftmaxWithLoss", "a label", "loss")
    for params, needed in (("", True), ("param { lr_mult: 0 } " * 3, False)):
        verb = "needs" if needed else "does not need"
        messages = build_log(text + norm.format(params) + end)
        assert f"bn {verb} backward computation." in messages
        assert backward_flags(make_net(text + norm.format(params) + end))["a"] == (True, [needed])


# Losses -------------------------------------------------------------------------------------------


def test_loss_weights_multiply_sums_of_elements() -> None:
    text = input_layer(data=(3, 4)) + ip("a", "data", "loss_weight: 0.5") + ip("b", "data")
    net = make_net(text.replace("name: 'b'", "name: 'b' loss_weight: -2", 1))
    assert net.loss_weights == {"a": 0.5, "b": -2.0}
    blobs = net(feed(net))
    expected = 0.5 * blobs["a"].sum() - 2 * blobs["b"].sum()
    torch.testing.assert_close(net.loss(blobs), expected)


def test_a_net_without_loss_has_loss_zero() -> None:
    net = make_net(input_layer(data=(2, 2)) + ip("a", "data"))
    loss = net.loss(net(feed(net)))
    assert float(loss) == 0
    assert not loss.requires_grad


def test_a_weighted_blob_that_is_read_goes_through_a_split() -> None:
    text = input_layer(data=(3, 4)) + ip("a", "data", "loss_weight: 0.5") + ip("b", "a")
    net = make_net(text + layer("loss", "Reduction", "b", "loss", "loss_weight: 3"))
    assert net.loss_weights == {"a_a_0_split_0": 0.5, "loss": 3.0}
    weight = net.params["a"][0]
    found = gradients(net)["a"]
    blobs = net(feed(net))
    expected = torch.autograd.grad(0.5 * blobs["a"].sum() + 3 * blobs["b"].sum(), weight)[0]
    assert found is not None
    torch.testing.assert_close(found, expected)


READ_LOSS = DATA + ip("a", "data") + layer("loss", "SoftmaxWithLoss", "a label", "loss", "LOSS")
SCALED = layer("power", "Power", "loss", "scaled", "power_param { scale: 10 } loss_weight: 1")


def test_a_reader_that_sends_a_gradient_replaces_the_loss_weight() -> None:
    # Without a split the weight stands where the reader puts its gradient: Caffe shows 11 losses
    # and minimises 10.
    net = make_net(READ_LOSS.replace("LOSS", "") + SCALED)
    alone = make_net(READ_LOSS.replace("LOSS", ""))
    blobs = net(feed(net))
    torch.testing.assert_close(net.loss(blobs), 11 * blobs["loss"])
    found, single = gradients(net)["a"], gradients(alone)["a"]
    assert found is not None
    assert single is not None
    torch.testing.assert_close(found, 10 * single)


def test_a_written_loss_weight_adds_to_the_readers_gradient() -> None:
    # Through the split, 0.5 and 10; the loss layer itself falls back to 1, which is only shown.
    net = make_net(READ_LOSS.replace("LOSS", "loss_weight: 0.5") + SCALED)
    alone = make_net(READ_LOSS.replace("LOSS", ""))
    blobs = net(feed(net))
    torch.testing.assert_close(net.loss(blobs), 11.5 * blobs["loss"])
    found, single = gradients(net)["a"], gradients(alone)["a"]
    assert found is not None
    assert single is not None
    torch.testing.assert_close(found, 10.5 * single)


def test_a_reader_without_gradient_leaves_the_loss_weight() -> None:
    net = make_net(READ_LOSS.replace("LOSS", "") + layer("silence", "Silence", "loss", ""))
    alone = make_net(READ_LOSS.replace("LOSS", ""))
    found, single = gradients(net)["a"], gradients(alone)["a"]
    assert found is not None
    assert single is not None
    torch.testing.assert_close(found, single)
