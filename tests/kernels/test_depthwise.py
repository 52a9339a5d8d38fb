"""Convolutions of each channel between BatchNorms, and poolings after one, against float64.

Interpreted on a CPU.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.kernels.postponed import Postponed
from caffe_dns.layers import batch_norm as layers_batch_norm
from caffe_dns.layers import normalized_convolution
from caffe_dns.layers.base import Context
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.net import Net, fusion
from tests.nets import input_layer, layer, make_net

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
depthwise = import_module("caffe_dns.kernels.depthwise")
normalized_pool = import_module("caffe_dns.kernels.normalized_pool")
batch_norm = import_module("caffe_dns.kernels.batch_norm")

#: What a number is off by at most; interpreted, its digits are cut off.
BFLOAT16 = 2**-8 if DEVICE == "cuda" else 2**-7
#: Batch, channels, image, stride: several programs, odd sides, a pixel.
SHAPES = [(1, 8, (5, 6), 1), (2, 16, (5, 3), 2), (1, 8, (4, 6), 2), (2, 8, (1, 1), 1)]


@pytest.fixture(autouse=True)
def several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """For so few numbers, too; and cuDNN is exact."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for name, value in {"PLACES": 32, "BACK_PLACES": 32, "CHANNELS": 8, "LEAST_ROWS": 2}.items():
        monkeypatch.setattr(depthwise, name, value)


def draw(*shape: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def error(found: Tensor, exact: Tensor) -> float:
    exact = exact.detach()
    return float((found.detach().double() - exact).abs().max() / exact.abs().max())


def normalization(x: Tensor, *, affine: bool, relu: bool) -> Any:
    """How x is to be normalised."""
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    along = [draw(x.shape[1], seed=seed) if affine else None for seed in (5, 6)]
    return batch_norm.Normalization(x, mean, (variance + 1e-2).rsqrt(), *along, relu)


def exactly(x: Tensor, by: Any) -> Tensor:
    """What becomes of x by statistics of its own, a factor and a shift."""
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    top = (x - mean) / (variance + 1e-2).sqrt()
    if by.factor is not None:
        top = top * by.factor.double().view(-1, 1, 1) + by.shift.double().view(-1, 1, 1)
    return top.relu() if by.relu else top


@pytest.mark.parametrize(("affine", "relu"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize(("num", "channels", "size", "stride"), SHAPES)
def test_against_float64(
    num: int, channels: int, size: tuple[int, int], stride: int, affine: bool, relu: bool
) -> None:
    x, weight = draw(num, channels, *size, seed=1), draw(channels, 1, 3, 3, seed=2)
    assert depthwise.fits(x, weight, stride)
    below = normalization(x, affine=affine, relu=relu)
    convolution = depthwise.Depthwise(below, weight, stride)
    y, found = convolution.top()
    activation = exactly(x.double(), below).requires_grad_()
    exact = weight.double().requires_grad_()
    wanted = F.conv2d(activation, exact, None, stride, 1, 1, channels)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert error(y, wanted) < 1e-6
    rows = y.numel() // channels
    total, squares = found.sums.double().sum(0)
    mean = found.pivot + total / rows
    variance = squares / rows - (total / rows) ** 2
    exact_variance, exact_mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    assert float((mean - exact_mean).abs().max()) < 1e-6
    torch.testing.assert_close(variance, exact_variance, rtol=1e-5, atol=1e-9)

    above = normalization(y, affine=True, relu=relu)
    upstream = draw(*y.shape, seed=3)
    along = above.parameter_gradients(upstream)
    gradient, of_weight, shift, factor = convolution.gradients(above, upstream, along)
    top = y.double().requires_grad_()
    exactly(top, above).backward(upstream.double())
    assert top.grad is not None
    wanted.backward(top.grad)
    assert activation.grad is not None and exact.grad is not None
    scale = float(upstream.abs().max() * weight.abs().max() * above.inverse_std.max())
    for got, want in ((gradient, activation.grad), (of_weight, exact.grad)):
        assert float((got.double() - want).abs().max()) < 1e-5 * max(scale, float(want.abs().max()))
    passed = torch.where(activation > 0, activation.grad, 0.0) if relu else activation.grad
    normalized = exactly(x.double(), normalization(x, affine=False, relu=False))
    torch.testing.assert_close(shift.double(), passed.sum((0, 2, 3)), rtol=1e-4, atol=1e-4 * scale)
    products = (passed * normalized).sum((0, 2, 3))
    torch.testing.assert_close(factor.double(), products, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize(("num", "channels", "size", "stride"), SHAPES[:2])
def test_in_bfloat16(num: int, channels: int, size: tuple[int, int], stride: int) -> None:
    """What is stored has been rounded once, and what is added up is what has been stored."""
    x, weight = (
        draw(*shape, seed=seed).bfloat16()
        for shape, seed in (((num, channels, *size), 1), ((channels, 1, 3, 3), 2))
    )
    assert depthwise.fits(x, weight, stride)
    below = replace(normalization(x.float(), affine=True, relu=True), x=x)
    convolution = depthwise.Depthwise(below, weight, stride)
    y, found = convolution.top()
    activation = exactly(x.double(), below).requires_grad_()
    exact = weight.double().requires_grad_()
    wanted = F.conv2d(activation, exact, None, stride, 1, 1, channels)
    close = partial(torch.testing.assert_close, rtol=BFLOAT16, atol=1e-5)
    close(y.double(), wanted)
    rows, (total, _) = y.numel() // channels, found.sums.double().sum(0)
    exact_mean = y.double().mean((0, 2, 3))
    assert float((found.pivot + total / rows - exact_mean).abs().max()) < 1e-6

    above = replace(normalization(y.float(), affine=True, relu=True), x=y)
    upstream = draw(*y.shape, seed=3).bfloat16()
    gradient, of_weight, shift, _ = convolution.gradients(
        above, upstream, above.parameter_gradients(upstream)
    )
    top = y.double().requires_grad_()
    exactly(top, above).backward(upstream.double())
    wanted.backward(top.grad)
    assert activation.grad is not None and exact.grad is not None
    scale = float(activation.grad.abs().max())
    close(gradient.double(), activation.grad, atol=1e-5 * scale)
    close(of_weight.double(), exact.grad, atol=1e-5 * float(exact.grad.abs().max()))
    passed = torch.where(activation > 0, gradient.double(), 0.0).sum((0, 2, 3))
    close(shift.double(), passed, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(("rows", "stride"), [(9, 1), (14, 2)])
def test_programs_of_many_rows(rows: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They load rows ahead, which takes more than those they have room for."""
    monkeypatch.setattr(depthwise, "LEAST_ROWS", rows)
    test_against_float64(1, 8, (rows, 3), stride, affine=True, relu=True)


def test_a_large_mean_costs_no_digits() -> None:
    """Where all of a channel's tops are about the same, but at the borders."""
    x = 1e-3 * draw(1, 8, 12, 12, seed=1) + 1
    below = batch_norm.Normalization(
        x, torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE), None, None, False
    )
    weight = torch.zeros(8, 1, 3, 3, device=DEVICE)
    weight[:, :, 1, 1] = 300
    y, found = depthwise.Depthwise(below, weight, 1).top()
    rows = y.numel() // 8
    total, squares = found.sums.double().sum(0)
    variance = squares / rows - (total / rows) ** 2
    exact = y.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance, exact, rtol=1e-5, atol=0)


def test_not_a_number_passes_through() -> None:
    x = draw(1, 8, 4, 4, seed=1)
    below = normalization(x, affine=True, relu=True)
    x[0, 3, 0, 0] = float("nan")
    y, _ = depthwise.Depthwise(below, draw(8, 1, 3, 3, seed=2), 1).top()
    assert y[0, 3].isnan().sum() == 4 and y.isnan().sum() == 4


@pytest.mark.parametrize(
    ("shape", "weight", "stride", "dtype", "last"),
    [
        ((2, 8, 5, 5), (8, 1, 5, 5), 1, torch.float32, True),
        ((2, 8, 5, 5), (8, 1, 3, 3), 3, torch.float32, True),
        ((2, 6, 5, 5), (6, 1, 3, 3), 1, torch.float32, True),
        ((2, 8, 5, 5), (8, 8, 3, 3), 1, torch.float32, True),
        ((2, 8, 5, 5), (8, 1, 3, 3), 1, torch.float32, False),
        ((2, 8, 5, 5), (8, 1, 3, 3), 1, torch.float16, True),
        ((2, 8, 5, 5), (8, 1, 3, 3), 1, torch.float64, True),
        ((0, 8, 5, 5), (8, 1, 3, 3), 1, torch.float32, True),
    ],
)
def test_what_is_left_to_cudnn(
    shape: tuple[int, ...], weight: tuple[int, ...], stride: int, dtype: torch.dtype, last: bool
) -> None:
    x = torch.zeros(shape, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    assert not depthwise.fits(x, torch.zeros(weight, dtype=dtype), stride)


CONV = """layer {{ name: '{0}' type: 'Convolution' bottom: '{1}' top: '{0}' convolution_param {{
    num_output: 8 weight_filler {{ type: 'msra' }} bias_filler {{ type: 'gaussian' }} {2} }} }}"""
SCALE = """scale_param { bias_term: true
    filler { type: 'uniform' min: 0.5 max: 2 } bias_filler { type: 'gaussian' std: 1 } }"""
BY_CHANNELS = "kernel_size: 3 pad: 1 group: 8 stride: 2"
LOSS = """layer { name: 'tanh' type: 'TanH' bottom: 'end' top: 't' }
    layer { name: 'loss' type: 'Reduction' bottom: 't' top: 'loss' loss_weight: 1
    reduction_param { operation: SUMSQ } }"""
SHAPE = (2, 8, 7, 6)


def chain(name: str, bottom: str, settings: str, normalizing: str = "") -> str:
    text = CONV.format(name, bottom, settings)
    text += layer(f"{name}/bn", "BatchNorm", name, name, normalizing)
    return (
        text
        + layer(f"{name}/s", "Scale", name, name, SCALE)
        + layer(f"{name}/r", "ReLU", name, name)
    )


def results(text: str, monkeypatch: pytest.MonkeyPatch, *, least: int) -> list[Tensor]:
    """Loss, gradients and statistics of a net with kernels, for blobs of `least` numbers."""
    monkeypatch.setattr(fusion, "DEVICES", (DEVICE,))
    monkeypatch.setattr(kernels, "suit", lambda blob: True)
    monkeypatch.setattr(normalized_convolution, "LARGE", least)
    net: Net = make_net(text, context=Context(device=torch.device(DEVICE)))
    data = draw(*SHAPE, seed=1).requires_grad_()
    for step in net.steps:
        if isinstance(step.layer, BaseConvolution):
            step.layer.channels_last = True
    loss = net.loss(net.compute({"data": data}, inner=False))
    loss.backward()
    gradients = [each.grad for each in (data, *net.parameters())]
    kept = [blob for name, blobs in net.params.items() if "/bn" in name for blob in blobs]
    return [loss, *(each for each in gradients if each is not None), *kept]


def end(bottom: str) -> str:
    return layer("end", "Power", bottom, "end") + LOSS


NETS = [
    (chain("a", "data", "kernel_size: 1") + chain("b", "a", BY_CHANNELS) + end("b"), 1),
    # One after the other; the first has its normalisation done by the second, which keeps its own.
    (
        chain("a", "data", "kernel_size: 1")
        + chain("b", "a", "kernel_size: 3 pad: 1 group: 8")
        + chain("c", "b", BY_CHANNELS)
        + end("c"),
        1,
    ),
    # Another reads it as well.
    (
        chain("a", "data", "kernel_size: 1")
        + chain("b", "a", BY_CHANNELS)
        + layer("more", "Reduction", "a", "more", "loss_weight: 1")
        + end("b"),
        0,
    ),
    # Not of each channel, not by 3x3.
    (chain("a", "data", "kernel_size: 1") + chain("b", "a", "kernel_size: 3 pad: 1") + end("b"), 0),
    (
        chain("a", "data", "kernel_size: 1")
        + chain("b", "a", "kernel_size: 5 pad: 2 group: 8")
        + end("b"),
        0,
    ),
    # With another stride across than down, with holes.
    *(
        (
            chain("a", "data", "kernel_size: 1")
            + chain("b", "a", f"kernel_size: 3 pad: 1 group: 8 {settings}")
            + end("b"),
            0,
        )
        for settings in ("stride_h: 1 stride_w: 2", "dilation: 2")
    ),
    # Not by the statistics of a batch.
    (
        chain("a", "data", "kernel_size: 1")
        + chain("b", "a", BY_CHANNELS, "batch_norm_param { use_global_stats: true }")
        + end("b"),
        0,
    ),
]


@pytest.mark.parametrize(("text", "times"), NETS, ids=[f"net {at}" for at in range(len(NETS))])
def test_a_net(text: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is as without the kernel; the sums of the gradient below are not made twice."""
    text = input_layer(data=SHAPE) + text
    wanted = results(text, monkeypatch, least=1 << 60)
    made: list[Any] = []
    summed: list[Any] = []
    for of, name, notes in (
        (depthwise.Depthwise, "top", made),
        (batch_norm.Normalization, "parameter_gradients", summed),
    ):
        function = getattr(of, name)

        def noted(
            *given: Any, function: Any = function, notes: list[Any] = notes, **named: Any
        ) -> Any:
            notes.append(given)
            return function(*given, **named)

        monkeypatch.setattr(of, name, noted)
    found = results(text, monkeypatch, least=0)
    assert len(made) == times
    assert len(summed) == text.count("BatchNorm") - text.count("use_global_stats") - times
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_sums_go_with_their_gradient_alone() -> None:
    postponed, gradient, along = Postponed(), torch.ones(3), (torch.ones(1), torch.zeros(1))
    postponed.leave_gradients(gradient, along)
    assert postponed.take_gradients(gradient.clone()) is None
    postponed.leave_gradients(gradient, along)
    assert postponed.take_gradients(gradient.view_as(gradient)) is along
    assert postponed.take_gradients(gradient) is None


WINDOWS = [((3, 3), (2, 2), (0, 0)), ((3, 2), (2, 1), (1, 0)), ((2, 2), (2, 2), (0, 0))]


@pytest.mark.parametrize(("affine", "relu"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize(("kernel", "stride", "pad"), WINDOWS)
def test_pooling(
    kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int], affine: bool, relu: bool
) -> None:
    from caffe_dns.kernels.channel_statistics import Statistics

    x = draw(2, 12, 9, 8, seed=1).requires_grad_()
    along = [draw(12, seed=seed).requires_grad_() if affine else None for seed in (2, 3)]
    exact = x.detach().double().requires_grad_()
    doubles = [each if each is None else each.detach().double().requires_grad_() for each in along]
    y = F.batch_norm(exact, None, None, doubles[0], doubles[1], True, 0.0, 1e-3)
    wanted = F.max_pool2d(y.relu() if relu else y, kernel, stride, pad, ceil_mode=True)
    means, variances = torch.zeros((2, 12), device=DEVICE)
    statistics = Statistics(means, variances, torch.zeros(1, device=DEVICE), 0.5)
    size, window = tuple(wanted.shape[2:]), (*kernel, *stride, *pad)
    top = normalized_pool.NormalizedMaxPool.apply(
        x, *along, None, statistics, 1e-3, relu, None, size, window
    )
    upstream = draw(*top.shape, seed=4)
    top.backward(upstream)
    wanted.backward(upstream.double())
    assert error(top, wanted) < 1e-6
    for got, want in zip((x, *along), (exact, *doubles), strict=True):
        if got is not None and want is not None and got.grad is not None and want.grad is not None:
            assert error(got.grad, want.grad) < 1e-6
    assert error(means, exact.mean((0, 2, 3))) < 1e-6


@pytest.mark.parametrize("relu", [True, False])
def test_a_net_with_pooling(relu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    text = input_layer(data=SHAPE) + chain("a", "data", "kernel_size: 1")
    if not relu:
        text = text.replace(layer("a/r", "ReLU", "a", "a"), "")
    text += layer("end", "Pooling", "a", "end", "pooling_param { kernel_size: 3 stride: 2 }") + LOSS
    found = results(text, monkeypatch, least=0)
    asked: list[Tensor] = []

    def is_channels_last(blob: Tensor) -> bool:
        asked.append(blob)
        return False

    monkeypatch.setattr(layers_batch_norm, "is_channels_last", is_channels_last)
    wanted = results(text, monkeypatch, least=0)
    assert len(asked) == 1
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
