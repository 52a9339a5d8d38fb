"""debug_info's lines against the values themselves (`Net::ForwardDebugInfo` and its like)."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from caffe_dns.layers.base import Context
from caffe_dns.net.debug_info import DebugInfo
from caffe_dns.proto.caffe_pb2 import TEST
from tests.nets import DATA, feed, ip, layer, make_net, recorded_log


def mean(values: Tensor | None) -> float:
    assert values is not None
    return float(values.detach().abs().double().mean())


def test_debug_info_shows_values_and_gradients() -> None:
    text = DATA + ip("a", "data", "param { name: 'w' } param { lr_mult: 0 }")
    text += layer("tanh", "TanH", "a", "a") + ip("b", "a", outputs=3)
    text += layer("loss", "SoftmaxWithLoss", "b label", "") + ip("c", "a")
    net = make_net(text, context=Context(surgery=False))
    with recorded_log() as messages, DebugInfo(net) as info:
        blobs = net(feed(net))
        loss = net.loss(blobs)
        loss.backward()
        info.backward()
    a, b, c = (net.params[name] for name in "abc")
    raw = feed(net)["data"] @ a[0].T + a[1]
    value = raw.tanh().detach().requires_grad_()
    top = value @ b[0].detach().T + b[1].detach()
    top.retain_grad()
    labels = feed(net)["label"].long()
    torch.nn.functional.cross_entropy(top, labels).backward()
    assert value.grad is not None
    before = value.grad * (1 - value.detach() ** 2)
    every = [*a, *b, *c]
    norms = [
        sum(float(t.detach().abs().sum()) for t in every),
        sum(float(t.grad.abs().sum()) for t in every if t.grad is not None),
        sum(float(t.detach().square().sum()) for t in every) ** 0.5,
        sum(float(t.grad.square().sum()) for t in every if t.grad is not None) ** 0.5,
    ]
    split = "a_tanh_0_split"
    expected = [
        ("    [Forward] Layer in, top blob data data: ", mean(feed(net)["data"])),
        ("    [Forward] Layer in, top blob label data: ", mean(feed(net)["label"])),
        ("    [Forward] Layer a, top blob a data: ", mean(raw)),
        ("    [Forward] Layer a, param blob w data: ", mean(a[0])),
        ("    [Forward] Layer a, param blob 1 data: ", mean(a[1])),
        ("    [Forward] Layer tanh, top blob a data: ", mean(value)),
        (f"    [Forward] Layer {split}, top blob {split}_0 data: ", mean(value)),
        (f"    [Forward] Layer {split}, top blob {split}_1 data: ", mean(value)),
        ("    [Forward] Layer b, top blob b data: ", mean(top)),
        ("    [Forward] Layer b, param blob 0 data: ", mean(b[0])),
        ("    [Forward] Layer b, param blob 1 data: ", mean(b[1])),
        ("    [Forward] Layer loss, top blob (automatic) data: ", mean(loss)),
        ("    [Forward] Layer c, top blob c data: ", mean(blobs["c"])),
        ("    [Forward] Layer c, param blob 0 data: ", mean(c[0])),
        ("    [Forward] Layer c, param blob 1 data: ", mean(c[1])),
        ("    [Backward] Layer loss, bottom blob b diff: ", mean(top.grad)),
        (f"    [Backward] Layer b, bottom blob {split}_0 diff: ", mean(value.grad)),
        ("    [Backward] Layer b, param blob 0 diff: ", mean(b[0].grad)),
        ("    [Backward] Layer b, param blob 1 diff: ", mean(b[1].grad)),
        (f"    [Backward] Layer {split}, bottom blob a diff: ", mean(value.grad)),
        ("    [Backward] Layer tanh, bottom blob a diff: ", mean(before)),
        ("    [Backward] Layer a, param blob 0 diff: ", mean(a[0].grad)),
    ]
    assert [m.rpartition(" ")[0] + " " for m in messages[:-1]] == [text for text, _ in expected]
    shown = [float(message.rpartition(" ")[2]) for message in messages[:-1]]
    assert shown == pytest.approx([number for _, number in expected], rel=1e-4, abs=1e-7)
    last = messages[-1]
    assert last.startswith("    [Backward] All net params (data, diff): L1 norm = (")
    numbers = [
        float(number) for number in re.findall(r"(?<=[( ])[\d.]+", last.partition("norm")[2])
    ]
    assert numbers == pytest.approx(norms, rel=1e-4)
    assert net.observer is None


def test_debug_info_shows_gradients_that_only_the_definition_asks_for() -> None:
    text = "force_backward: true " + DATA + ip("a", "data", "param { lr_mult: 0 }")
    net = make_net(text + layer("loss", "SoftmaxWithLoss", "a label", "loss"))
    with recorded_log() as messages, DebugInfo(net) as info:
        net.loss(net(feed(net))).backward()
        info.backward()
    (line,) = (m for m in messages if "[Backward] Layer a, bottom blob data diff: " in m)
    assert float(line.rpartition(" ")[2]) > 0
    assert any("[Backward] Layer a, param blob 0 diff: " in m for m in messages)


def test_debug_info_shows_shared_gradients_as_they_add_up() -> None:
    shared = "param { name: 'w' } param { name: 'b' }"
    text = DATA + ip("first", "data", outputs=4) + ip("a", "first", shared, outputs=4)
    text += ip("b", "a", shared, outputs=4) + layer("loss", "SoftmaxWithLoss", "b label", "loss")
    net = make_net(text, context=Context(surgery=False))
    parameter = net.params["a"][0]
    for _ in range(2):  # as with iter_size, the second pass adds to the first
        before = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        with recorded_log() as messages, DebugInfo(net) as info:
            net.loss(net(feed(net))).backward()
            info.backward()
        assert net.params["a"][0] is parameter and net.params["b"][0] is parameter
    rows = feed(net)["data"].flatten(1) @ net.params["first"][0].T + net.params["first"][1]
    first, last = (parameter.detach().clone().requires_grad_() for _ in range(2))
    bias = net.params["a"][1].detach()
    top = (rows.detach() @ first.T + bias) @ last.T + bias
    torch.nn.functional.cross_entropy(top, feed(net)["label"].long()).backward()
    assert first.grad is not None and last.grad is not None
    shown = {
        name: float(message.rpartition(" ")[2])
        for name in "ab"
        for message in messages
        if f"[Backward] Layer {name}, param blob 0 diff" in message
    }
    assert shown["b"] == pytest.approx(mean(before + last.grad), rel=1e-4)
    assert shown["a"] == pytest.approx(mean(before + last.grad + first.grad), rel=1e-4)


def test_debug_info_in_tests_shows_values_only() -> None:
    net = make_net(DATA + ip("a", "data"), TEST, Context(surgery=False))
    with recorded_log() as messages, DebugInfo(net), torch.no_grad():
        net(feed(net))
        net(feed(net))
    assert len(messages) == 2 * 5
