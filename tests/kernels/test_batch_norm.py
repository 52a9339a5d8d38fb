"""Batch normalisation in Triton against PyTorch in float64; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_dns import kernels
from caffe_dns.layers.base import Context
from caffe_dns.net import fusion
from tests.nets import input_layer, layer, make_net

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
layout = import_module("caffe_dns.kernels.layout")
normalized = import_module("caffe_dns.kernels.normalized")
Statistics = normalized.Statistics

#: Each shape, and whether channels are innermost: several blocks of channels, of rows, one number.
LAYOUTS = [
    ((7, 5), False),
    ((3, 4, 4, 5), False),
    ((3, 70, 2, 3), True),
    ((3, 136, 2, 3), True),
    ((2, 3, 40, 41), False),
    ((2, 3, 40, 41), True),
    ((1100, 2), False),
    ((4, 1, 3), False),
]


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(values: list[Tensor], relu: bool) -> Tensor:
    x, *affine = values
    factor, shift = affine or (None, None)
    y = F.batch_norm(x, None, None, factor, shift, training=True, eps=1e-5)
    return F.relu(y) if relu else y


@pytest.mark.parametrize(
    ("shape", "last", "affine", "relu"),
    [(*each, both, both) for each in LAYOUTS for both in (False, True)]
    + [(*LAYOUTS[0], affine, not affine) for affine in (False, True)],
)
def test_against_float64(shape: tuple[int, ...], last: bool, affine: bool, relu: bool) -> None:
    channels = shape[1]
    x = 3 * draw(shape, 1) + 100 * draw((channels,), 2).view(-1, *[1] * (len(shape) - 2))
    values = [x, 1 + draw((channels,), 3).abs(), draw((channels,), 4)][: 3 if affine else 1]
    rest = [] if affine else [None, None]
    upstream = draw(shape, 5)
    bias = draw((channels,), 6)
    sums = [draw((channels,), 7), draw((channels,), 8).abs(), torch.tensor([2.0])]
    before = [value.double() for value in sums]

    exact = [value.double().requires_grad_() for value in values]
    wanted = reference(exact, relu)
    wanted.backward(upstream.double())

    memory_format = torch.channels_last if last else torch.contiguous_format
    values[0] = x.contiguous(memory_format=memory_format)
    on_device = [value.to(DEVICE).requires_grad_() for value in values]
    kept = [value.to(DEVICE) for value in sums]
    statistics = Statistics(*kept, 0.75)
    found = normalized.NormalizedBatch.apply(
        *on_device, *rest, bias.to(DEVICE), statistics, 1e-5, relu
    )
    assert found.stride() == on_device[0].stride()
    found.backward(upstream.to(DEVICE))

    # The inputs' own rounding counts for 100 / 3 * 6e-8 of a standard deviation.
    torch.testing.assert_close(found.double().cpu(), wanted, rtol=1e-5, atol=3e-5)
    for got, want in zip(on_device, exact, strict=True):
        assert got.grad is not None
        torch.testing.assert_close(got.grad.double().cpu(), want.grad, rtol=1e-4, atol=2e-4)
    axes = [axis for axis in range(len(shape)) if axis != 1]
    mean = x.double().mean(axes) + bias.double()
    variance = x.double().var(axes)
    for got, start, new in zip(kept, before, (mean, variance, torch.ones(1)), strict=True):
        torch.testing.assert_close(got.double().cpu(), 0.75 * start + new, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 70, 2, 3), (2, 3, 40, 41), (5, 136, 7, 9)])
def test_as_a_large_blob(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose tiles are on their way to shared memory before they are summed up."""
    monkeypatch.setattr(layout, "LARGE", 1)
    x = torch.zeros(shape).contiguous(memory_format=torch.channels_last)
    assert layout.layout_of(x).streamed(x)["STAGES"] > 0
    test_against_float64(shape, last=True, affine=True, relu=True)


@pytest.mark.parametrize(
    ("shape", "last", "affine", "copies"),
    [
        (*each, affine, copies)
        for each, affine, copies in zip(
            LAYOUTS, 4 * [False, True], [1, 2, 3, 2, 2, 1, 2, 1], strict=False
        )
    ],
)
def test_a_sum_against_float64(
    shape: tuple[int, ...], last: bool, affine: bool, copies: int
) -> None:
    channels = shape[1]
    values = [draw(shape, 1), 1 + draw((channels,), 3).abs(), draw((channels,), 4)]
    values = [*values[: 3 if affine else 1], draw(shape, 2)]
    # One of the copies is not read.
    upstream = [draw(shape, 5 + i) for i in range(max(1, copies - 1))]
    exact = [value.double().requires_grad_() for value in values]
    wanted = F.relu(reference(exact[:-1], relu=False) + exact[-1])
    wanted.backward(sum(gradient.double() for gradient in upstream))

    on_device = [value.to(DEVICE) for value in values]
    if last:  # the addend keeps its own layout
        on_device[0] = on_device[0].contiguous(memory_format=torch.channels_last)
    x, *parameters, addend = (value.requires_grad_() for value in on_device)
    kept = [torch.zeros(count, device=DEVICE) for count in (channels, channels, 1)]
    found = normalized.NormalizedSum.apply(
        x, addend, *parameters or (None, None), None, Statistics(*kept, 0.5), 1e-5, copies
    )
    assert len(found) == copies
    assert all(copy.stride() == x.stride() for copy in found)
    torch.autograd.backward(found[: len(upstream)], [each.to(DEVICE) for each in upstream])
    for copy in found:
        torch.testing.assert_close(copy.double().cpu(), wanted, rtol=1e-5, atol=1e-5)
    for got, want in zip((x, *parameters, addend), exact, strict=True):
        assert got.grad is not None
        torch.testing.assert_close(got.grad.double().cpu(), want.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        kept[0].double().cpu(),
        exact[0].mean([a for a in range(x.dim()) if a != 1]),
        atol=1e-5,
        rtol=0,
    )


def test_a_sum_in_bfloat16() -> None:
    x, addend = (draw((8, 3, 5, 5), seed).to(DEVICE, torch.bfloat16) for seed in (1, 2))
    kept = [torch.zeros(count, device=DEVICE) for count in (3, 3, 1)]
    x.requires_grad_(), addend.requires_grad_()
    tops = normalized.NormalizedSum.apply(
        x, addend, None, None, None, Statistics(*kept, 0.5), 1e-5, 2
    )
    torch.autograd.backward(tops, [torch.ones_like(top) for top in tops])
    wanted = F.relu(reference([x.detach().double()], relu=False) + addend.detach().double())
    # Interpreted, the last digit is cut off, not rounded.
    torch.testing.assert_close(tops[0].double(), wanted, rtol=2**-7, atol=1e-6)
    assert addend.grad is not None and x.grad is not None
    assert addend.grad.dtype == x.grad.dtype == torch.bfloat16
    # The gradient of the addend is 2 where the sum is positive, and nothing else.
    assert torch.equal(addend.grad.double(), 2.0 * (wanted > 0))


GLOBAL = "batch_norm_param { use_global_stats: true }"
SCALE = """scale_param { bias_term: true
    filler { type: 'uniform' min: 0.5 max: 2 } bias_filler { type: 'gaussian' std: 1 } }"""


@pytest.mark.parametrize(
    ("readers", "addend", "settings"),
    [
        (1, "other", ""),
        (2, "other", ""),
        (1, "b", ""),
        (2, "b", ""),
        (1, "b", GLOBAL),
        (2, "c", ""),
        (1, "d", ""),
    ],
)
def test_a_residual_block(
    readers: int, addend: str, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is added may be normalised, too, where it is added; but not if another reads it,
    or changes it in place."""
    shape = (4, 3, 5, 6)
    text = input_layer(data=shape, other=shape)
    if addend != "other":
        text += layer("bn2", "BatchNorm", "other", addend)
        text += layer("scale2", "Scale", addend, addend, SCALE)
    if addend == "d":
        text += layer("tanh", "TanH", "d", "d")
    if addend == "c":
        text += layer("silence", "Silence", "c", "").replace("top: ''", "")
    text += layer("bn", "BatchNorm", "data", "a", settings)
    text += layer("scale", "Scale", "a", "a", SCALE)
    text += f"layer {{ name: 'sum' type: 'Eltwise' bottom: '{addend}' bottom: 'a' top: 's' }}"
    text += layer("relu", "ReLU", "s", "s")
    for number in range(readers):
        text += layer(f"t{number}", "TanH", "s", f"t{number}") + (
            f"layer {{ type: 'Reduction' bottom: 't{number}' top: 'l{number}' loss_weight: 1 "
            "reduction_param { operation: SUMSQ } }"
        )
    found = []
    for devices in ((), (DEVICE,)):
        monkeypatch.setattr(fusion, "DEVICES", devices)
        monkeypatch.setattr(kernels, "suit", lambda blob, suits=bool(devices): suits)
        net = make_net(text, context=Context(device=torch.device(DEVICE)))
        data, other = (draw(shape, seed).to(DEVICE).requires_grad_() for seed in (1, 2))
        net.loss(net.compute({"data": data, "other": other}, inner=False)).backward()
        learned = [param.tensor for param in net.learnable_params]
        gradients = [each.grad for each in (data, other, *learned)]
        found.append([*(each for each in gradients if each is not None), *learned])
    groups = list(net.fusion.layers[False].values())
    lengths = [2] * (addend != "other") + [4 + (readers > 1)]
    assert [len(group.steps) for group in groups] == lengths
    left = [getattr(group, "before", None) is not None for group in groups]
    assert any(left) == (addend == "b")
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_nan_passes_through_a_sum() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]], device=DEVICE)
    addend = torch.tensor([[float("nan"), 0.0], [0.0, 0.0]], device=DEVICE)
    kept = [torch.zeros(count, device=DEVICE) for count in (2, 2, 1)]
    (top,) = normalized.NormalizedSum.apply(
        x, addend, None, None, None, Statistics(*kept, 0.5), 1e-5, 1
    )
    assert top.isnan().tolist() == [[True, False], [False, False]]


def test_bfloat16_keeps_its_type_and_float32_statistics() -> None:
    x = draw((64, 3, 5, 5), 1).to(DEVICE, torch.bfloat16).requires_grad_()
    kept = [torch.zeros(3, device=DEVICE), torch.zeros(3, device=DEVICE)]
    statistics = Statistics(*kept, torch.zeros(1, device=DEVICE), 0.5)
    top = normalized.NormalizedBatch.apply(x, None, None, None, statistics, 1e-5, True)
    top.sum().backward()
    assert top.dtype == torch.bfloat16
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(kept[0], x.detach().float().mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_one_number_to_a_channel() -> None:
    x = torch.tensor([[3.0, -2.0]], device=DEVICE, requires_grad=True)
    kept = [torch.zeros(2, device=DEVICE), torch.zeros(2, device=DEVICE)]
    statistics = Statistics(*kept, torch.zeros(1, device=DEVICE), 0.5)
    top = normalized.NormalizedBatch.apply(x, None, None, None, statistics, 1e-5, False)
    top.sum().backward()
    assert top.tolist() == [[0, 0]]
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 0]]
    assert kept[1].tolist() == [0, 0]


def test_a_bias_before_it_has_a_gradient_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty_like", torch.ones_like)  # what memory may hold
    x = draw((3, 20, 4, 5), 1).to(DEVICE)
    bias = torch.zeros(20, device=DEVICE, requires_grad=True)
    kept = [torch.zeros(count, device=DEVICE) for count in (20, 20, 1)]
    statistics = normalized.Statistics(*kept, 0.9)
    top = normalized.NormalizedBatch.apply(x, None, None, bias, statistics, 1e-5, True)
    (added,) = normalized.NormalizedSum.apply(x, x, None, None, bias, statistics, 1e-5, 1)
    for result in (top, added):
        (gradient,) = torch.autograd.grad(result.sum(), bias)
        assert torch.equal(gradient, torch.zeros_like(bias))
