"""Which layers run as programs, and that the net gives what it gave."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from caffe_dns import load_net
from caffe_dns.errors import CaffeError
from caffe_dns.net.wiring import Step
from caffe_dns.proto.caffe_pb2 import TEST
from caffe_dns.sparse import plan
from tests.nets import input_layer, layer, make_net

pytest.importorskip("numba")

MODEL = Path(__file__).parents[2] / "models/lenet/deploy.prototxt"
Wins = Callable[[list[Step], object], bool]


def rows(monkeypatch: pytest.MonkeyPatch, wins: Wins, kept: float = 0.1) -> list[list[str]]:
    """The layers of LeNet that run as programs, given who wins; checks what the net gives."""
    monkeypatch.setattr(plan, "_wins", wins)
    net = load_net(MODEL, seed=3)
    generator = torch.Generator().manual_seed(5)
    for blobs in net.params.values():
        weight = torch.randn(blobs[0].shape, generator=generator) / 10
        blobs[0].data.copy_(weight * (torch.rand(weight.shape, generator=generator) < kept))
    images = torch.rand((3, 1, 28, 28), generator=generator)
    with torch.no_grad():
        wanted = net({"data": images})
        found = plan.use_sparse(net)
        tops = net({"data": images})
    for name in net.outputs:
        torch.testing.assert_close(tops[name], wanted[name], rtol=1e-5, atol=1e-6)
    return [[step.layer.name for step in row.steps] for row in found]


def test_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = rows(monkeypatch, lambda steps, shapes: True)
    assert row[0] == "conv1" and row[-1] == "prob"


def test_only_those_that_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    slower = {"conv1", "ip1"}
    found = rows(
        monkeypatch, lambda steps, shapes: slower.isdisjoint(step.layer.name for step in steps)
    )
    assert [names[:2] for names in found] == [["pool1", "conv2"], ["relu1", "ip2"]]
    assert rows(monkeypatch, lambda steps, shapes: len(steps) == 1) == []


def test_dense_weights_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows(monkeypatch, lambda steps, shapes: True, kept=1.0) == []


def test_measuring() -> None:
    """Whoever wins, the net says the same, also of images of another size."""
    filled = "convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: 'xavier' } }"
    text = input_layer(x=(1, 2, 8, 8)) + layer("c", "Convolution", "x", "c", filled)
    text += layer("r", "ReLU", "c", "c")
    net = make_net(text, TEST)
    net.params["c"][0].data[1:] = 0
    plan.use_sparse(net)
    with torch.no_grad():
        for size in (8, 11):
            x = torch.randn((1, 2, size, size), generator=torch.Generator().manual_seed(2))
            weight, bias = net.params["c"][:2]
            wanted = torch.relu(torch.conv2d(x, weight, bias))
            torch.testing.assert_close(net({"x": x})["c"], wanted, rtol=1e-5, atol=1e-6)


def test_sparse_nets_are_for_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CaffeError, match="of the phase TEST"):
        load_net(MODEL, "TRAIN", sparse=True)
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in [name for name in sys.modules if name.startswith("caffe_dns.sparse.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("kernels", "operations"):
        monkeypatch.delattr(f"caffe_dns.sparse.{name}", raising=False)
    with pytest.raises(CaffeError, match="numba does not work: import of numba halted"):
        load_net(MODEL, sparse=True)
