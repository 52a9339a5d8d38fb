"""2:4 on a GPU: which layers run so, and what they give."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from caffe_dns.layers.base import Context, Layer
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net import Net, fusion
from caffe_dns.proto.caffe_pb2 import TEST
from caffe_dns.sparse import plan, semi_structured
from tests.nets import input_layer, layer, make_net, recorded_log
from tools.benchmarks import sparse_gpu

FILLED = "weight_filler { type: 'gaussian' std: 0.2 } bias_filler { type: 'gaussian' std: 1 }"


def conv(name: str, bottom: str, settings: str) -> str:
    text = f"convolution_param {{ num_output: 24 {settings} {FILLED} }}"
    return layer(name, "Convolution", bottom, name, text)


def ip(name: str, bottom: str, kind: str = "InnerProduct", settings: str = "") -> str:
    text = f"inner_product_param {{ num_output: 70 {settings} {FILLED} }}"
    return layer(name, kind, bottom, name, text)


NET = (
    input_layer(data=(3, 16, 6, 6))
    + conv("wide", "data", "kernel_size: 3 pad: 1")
    + conv("point", "wide", "kernel_size: 1")
    + layer("relu", "ReLU", "point", "point")
    + conv("strided", "point", "kernel_size: 1 stride: 2")
    + conv("grouped", "strided", "kernel_size: 1 group: 2")
    + ip("flat", "grouped")
    + layer("relu2", "ReLU", "flat", "flat")
    + ip("official", "flat", "CInnerProduct")
    + ip("turned", "official", settings="transpose: true")
    + ip("dense", "turned")
)
FASTER = ["point", "strided", "flat", "official"]


def net_on(device: str, activations: torch.dtype | None = torch.bfloat16) -> Net:
    """All weights in 2:4 along the inputs, those of `dense` apart."""
    context = Context(device=torch.device(device), activations=activations, seed=3)
    net = make_net(NET, TEST, context=context)
    for step in net.steps:
        blobs = step.layer.blobs
        if blobs and step.layer.name != "dense":
            places = torch.arange(blobs[0].shape[1], device=device) % 4 < 2
            blobs[0].data *= places.view(-1, *[1] * (blobs[0].dim() - 2))
    return net


def stand_in(matrix: Tensor) -> Tensor:
    """Instead of what only a GPU has."""
    assert all(extent % 64 == 0 for extent in matrix.shape)
    return matrix


Result = tuple[Tensor, Tensor | None]


def note_products(layers: list[Layer]) -> list[str]:
    """The names of the layers whose sparse product runs from now on."""
    ran: list[str] = []

    def noted(name: str, product: Callable[[Tensor], Result]) -> Callable[[Tensor], Result]:
        def run(bottom: Tensor) -> Result:
            ran.append(name)
            return product(bottom)

        return run

    for each in layers:
        assert isinstance(each, WeightedLayer)
        assert each.fixed_product is not None
        each.fixed_product = noted(each.name, each.fixed_product)
    return ran


def check(net: Net) -> None:
    with torch.no_grad():
        data = torch.randn((3, 16, 6, 6), generator=torch.Generator().manual_seed(1))
        given = {"data": data.to(net.context.device)}
        wanted = {name: blob.float() for name, blob in net(given).items()}
        layers = [step.layer for row in semi_structured.use_sparse_units(net) for step in row.steps]
        ran = note_products(layers)
        found = net(given)
    assert [each.name for each in layers] == FASTER
    assert sorted(ran) == sorted(FASTER)
    for name, blob in wanted.items():
        off = (found[name].float() - blob).abs().max() / blob.abs().max()
        assert off < 0.03, name  # each layer rounds to 8 bits


@pytest.mark.parametrize("devices", [(), ("cpu",)])
def test_nets_give_what_they_gave(
    monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...]
) -> None:
    """Whether or not layers run in groups."""
    monkeypatch.setattr(fusion, "DEVICES", devices)
    monkeypatch.setattr(semi_structured, "compress", stand_in)
    monkeypatch.setattr(semi_structured, "is_faster", lambda sparse, dense: True)
    check(net_on("cpu"))


def test_what_is_slower_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semi_structured, "compress", stand_in)
    monkeypatch.setattr(semi_structured, "is_faster", lambda sparse, dense: False)
    net = net_on("cpu")
    with recorded_log() as messages:
        assert semi_structured.use_sparse_units(net) == []
    assert messages == ["Sparse weights are faster in: no layer"]


def test_what_is_wrong_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semi_structured, "compress", lambda matrix: matrix * 1.02)
    monkeypatch.setattr(semi_structured, "is_faster", lambda sparse, dense: True)
    with recorded_log() as messages:
        assert semi_structured.use_sparse_units(net_on("cpu")) == []
    assert "The sparse product of layer point is off by 0.0" in messages[0]


def test_what_cannot_run_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(matrix: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: operation not supported\nand more of it")

    monkeypatch.setattr(semi_structured, "compress", refuse)
    with recorded_log() as messages:
        assert semi_structured.use_sparse_units(net_on("cpu")) == []
    refused = "stays dense: CUDA error: operation not supported"
    assert messages[:-1] == [f"Layer {name} {refused}" for name in FASTER]


def test_other_precisions() -> None:
    with recorded_log() as messages:
        assert semi_structured.use_sparse_units(net_on("cpu", None)) == []
    assert messages == [
        "Sparse weights are faster in: no layer (2:4 runs in half precision: --precision bf16)"
    ]


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        ([1, 0, 2, 0, 0, 0, 3, 4], True),
        ([1, 0, 2, 3, 0, 0, 0, 0], False),
        ([0, 1, 1, 0, 1, 1], True),  # as if two zeros came after them
        ([0, 1, 1, 0, 1, 1, 1], False),
    ],
)
def test_the_pattern(row: list[float], holds: bool) -> None:
    assert semi_structured.in_pattern(torch.tensor([row, [0] * len(row)])) is holds


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semi_structured, "is_faster", lambda sparse, dense: True)
    check(net_on("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_measuring_on_a_gpu() -> None:
    """Whoever wins, the net says the same."""
    net = net_on("cuda")
    given = {"data": torch.randn((3, 16, 6, 6), device="cuda")}
    with torch.no_grad():
        wanted = net(given)["dense"].float()
        plan.use_sparse(net)
        found = net(given)["dense"].float()
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_benchmark(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each product once: on a busy machine one may take a second."""
    monkeypatch.setattr(semi_structured, "PASSES", 1)
    monkeypatch.setattr(semi_structured, "ROUNDS", 1)
    monkeypatch.setattr(sys, "argv", ["sparse_gpu.py", "--batches", "64"])
    # As a program of its own it may leave the log silent.
    monkeypatch.setattr(sparse_gpu.log, "set_quiet", lambda _: None)
    with torch.no_grad():
        sparse_gpu.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "1x1" in line]
    assert len(rows) == 2 * 5
    assert all(float(row[-2]) < 0.02 for row in rows)


def test_what_the_benchmark_measures() -> None:
    net = sparse_gpu.layer_of(8, 16, 5, batch=2, device=torch.device("cpu"))
    assert net.blob_shapes["it"] == (2, 8, 5, 5)
    bottom, found = torch.randn(2, 16, 5, 5), net.layer("it")
    assert isinstance(found, WeightedLayer)
    product = semi_structured.Product(found, found.blobs[0].flatten(1), 8, None)
    wanted = torch.conv2d(bottom, found.blobs[0])
    torch.testing.assert_close(product(bottom), wanted, rtol=1e-5, atol=1e-6)
