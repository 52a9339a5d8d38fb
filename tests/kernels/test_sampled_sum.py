"""Sums that all readers look at in part, against float64 and the whole; interpreted on a CPU."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.layers.base import Context
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.net import Net, fusion
from caffe_dns.net.fused import Residual
from tests.layers.test_weight_gradients import OnTheSpot
from tests.nets import input_layer, layer, make_net

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
sampled_sum = import_module("caffe_dns.kernels.sampled_sum")
batch_norm = import_module("caffe_dns.kernels.batch_norm")
Statistics = import_module("caffe_dns.kernels.channel_statistics").Statistics


@pytest.fixture(autouse=True)
def _exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def draw(*shape: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def normalization(values: Tensor, factor: Tensor | None, shift: Tensor | None) -> Any:
    variance, mean = torch.var_mean(values.detach(), (0, 2, 3), correction=0)
    return batch_norm.Normalization(
        values.detach(), mean, (variance + 1e-3).rsqrt(), factor, shift, False
    )


def normalized(x: Tensor | None, along: list[Tensor | None]) -> Tensor:
    """x by its own statistics, a factor and a shift, in float64."""
    assert x is not None
    factor, shift = (value if value is None else value.double() for value in along)
    return F.batch_norm(x.double(), None, None, factor, shift, training=True, eps=1e-3)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("is_postponed", [True, False])
@pytest.mark.parametrize(
    ("shape", "stride", "copies"),
    [((2, 16, 5, 6), 2, 2), ((3, 8, 7, 7), 3, 1), ((2, 136, 4, 3), 2, 3), ((2, 8, 2, 2), 2, 2)],
)
def test_against_float64(
    shape: tuple[int, ...], stride: int, copies: int, is_postponed: bool, affine: bool
) -> None:
    channels = shape[1]
    x, addend = (draw(*shape, seed=seed).requires_grad_() for seed in (1, 2))
    along = [draw(channels, seed=seed).requires_grad_() if affine else None for seed in (3, 4)]
    exact = [
        value if value is None else value.detach().double().requires_grad_()
        for value in (x, addend, *along)
    ]
    other = exact[1]
    assert other is not None
    left = None
    if is_postponed:
        values = [value if value is None else value.detach() for value in along]
        left = normalization(addend, *values)
        other = exact[1] = normalized(exact[1], values).detach().requires_grad_()
    wanted = (normalized(exact[0], exact[2:]) + other).relu()[:, :, ::stride, ::stride]
    upstream = [draw(*wanted.shape, seed=5 + copy) for copy in range(max(1, copies - 1))]
    wanted.backward(sum(each.double() for each in upstream))

    means, variances = torch.zeros((2, channels), device=DEVICE)
    statistics = Statistics(means, variances, torch.zeros(1, device=DEVICE), 0.5)
    assert sampled_sum.fits(x)
    tops = sampled_sum.SampledSum.apply(
        x, addend, *along, None, statistics, 1e-3, copies, None, left, stride
    )
    assert len(tops) == copies
    torch.autograd.backward(tops[: len(upstream)], upstream)
    for top in tops:
        torch.testing.assert_close(top.double(), wanted, rtol=1e-5, atol=1e-5)
    for got, want in zip((x, addend, *along), exact, strict=True):
        if got is not None:
            assert got.grad is not None and want is not None
            torch.testing.assert_close(got.grad.double(), want.grad, rtol=1e-4, atol=1e-4)
    mean = x.detach().double().mean((0, 2, 3))
    torch.testing.assert_close(means.double(), mean, rtol=1e-5, atol=1e-5)


class Swallowed(torch.autograd.Function):
    """A sum that hands no gradient down."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        pass


def test_nobody_wants_a_gradient() -> None:
    x, addend = (draw(2, 8, 4, 4, seed=seed).requires_grad_() for seed in (1, 2))
    statistics = Statistics(*torch.zeros((3, 8), device=DEVICE), 0.5)
    given = (x, addend, None, None, None, statistics, 1e-3, 2, None, None, 2)
    one, _ = sampled_sum.SampledSum.apply(*given)
    Swallowed.apply(one).backward()
    assert x.grad is None and addend.grad is None


def test_not_a_number_passes_through() -> None:
    x, addend = draw(2, 8, 4, 4, seed=1), draw(2, 8, 4, 4, seed=2)
    addend[1, 3, 2, 0] = float("nan")
    statistics = Statistics(*torch.zeros((3, 8), device=DEVICE), 0.5)
    given = (x, addend, None, None, None, statistics, 1e-3, 1, None, None, 2)
    (top,) = sampled_sum.SampledSum.apply(*given)
    assert top[1, 3, 1, 0].isnan() and top.isnan().sum() == 1


CONV = """layer {{ name: '{0}' type: 'Convolution' bottom: '{1}' top: '{0}' convolution_param {{
    num_output: 8 {2} weight_filler {{ type: 'msra' }} bias_filler {{ type: 'gaussian' }} }} }}"""
SCALE = """scale_param { bias_term: true
    filler { type: 'uniform' min: 0.5 max: 2 } bias_filler { type: 'gaussian' std: 1 } }"""
SHAPE = (2, 8, 7, 6)
ONE, STRIDED = "kernel_size: 1", "kernel_size: 1 stride: 2"


def chain(name: str, bottom: str, settings: str, *, relu: bool = True) -> str:
    text = CONV.format(name, bottom, settings) + layer(f"{name}/bn", "BatchNorm", name, name)
    text += layer(f"{name}/s", "Scale", name, name, SCALE)
    return text + layer(f"{name}/r", "ReLU", name, name) * relu


def block(name: str, bottom: str, *, first: str = ONE, projected: bool = False) -> str:
    """Two convolutions, and what is added to them: what they read, or a convolution of it."""
    text = chain(f"{name}a", bottom, first)
    if projected:
        text = chain(f"{name}p", bottom, first, relu=False) + text
    text += chain(f"{name}b", f"{name}a", "kernel_size: 3 pad: 1", relu=False)
    other = f"{name}p" if projected else bottom
    text += f"""layer {{ name: '{name}' type: 'Eltwise' bottom: '{other}' bottom: '{name}b'
        top: '{name}' }}"""
    return text + layer(f"{name}/r", "ReLU", name, name)


LOSS = """layer { name: 'tanh' type: 'TanH' bottom: 'end' top: 't' }
    layer { name: 'loss' type: 'Reduction' bottom: 't' top: 'loss' loss_weight: 1
    reduction_param { operation: SUMSQ } }"""


def strided(settings: str) -> str:
    return block("one", "data") + block("end", "one", first=settings, projected=True) + LOSS


NETS = [
    strided(STRIDED),
    strided(f"{STRIDED} bias_term: false"),
    # A sum of what has been postponed, whose single reader needs no Split.
    block("zero", "data", projected=True) + chain("end", "zero", STRIDED) + LOSS,
    # A stage of one block: it reads a sample, and makes one.
    block("zero", "data", projected=True)
    + block("one", "zero", first=STRIDED, projected=True)
    + block("end", "one", first="kernel_size: 1 stride: 3", projected=True)
    + LOSS,
]
#: Readers look at all pixels, at several, beyond the image, otherwise down than across, in groups,
#: by two strides; one of them is no convolution, or has no BatchNorm, or a pooling behind it; or
#: the sum is a loss itself.
WHOLE = [
    *(
        strided(settings)
        for settings in (
            ONE,
            "kernel_size: 3 pad: 1 stride: 2",
            "kernel_size: 1 pad: 1 stride: 2",
            "kernel_size: 1 stride_h: 2 stride_w: 1",
            f"{STRIDED} group: 2",
        )
    ),
    block("one", "data")
    + chain("two", "one", STRIDED)
    + chain("end", "one", "kernel_size: 1 stride: 4")
    + layer("sum", "Reduction", "two", "sum", "loss_weight: 1")
    + LOSS,
    strided(STRIDED) + layer("more", "Reduction", "one", "more", "loss_weight: 1"),
    strided(STRIDED).replace("name: 'one/r'", "name: 'one/r' loss_weight: 1"),
    block("one", "data") + CONV.format("end", "one", STRIDED) + LOSS,
    block("one", "data")
    + chain("two", "one", STRIDED)
    + layer("end", "Pooling", "two", "end", "pooling_param { kernel_size: 2 stride: 2 }")
    + LOSS,
]


def build(
    text: str, monkeypatch: pytest.MonkeyPatch, activations: torch.dtype | None = None
) -> Net:
    """A net with kernels and its channels innermost."""
    monkeypatch.setattr(fusion, "DEVICES", (DEVICE,))
    monkeypatch.setattr(kernels, "suit", lambda blob: True)
    text = input_layer(data=SHAPE) + text
    context = Context(device=torch.device(DEVICE), activations=activations)
    net: Net = make_net(text, context=context)
    for each in convolutions(net):
        each.channels_last = True
    return net


def convolutions(net: Net) -> list[BaseConvolution]:
    return [step.layer for step in net.steps if isinstance(step.layer, BaseConvolution)]


def results(net: Net, *, inner: bool) -> list[Tensor]:
    """Loss, gradients and statistics; with `inner`, every blob is there."""
    data = draw(*SHAPE, seed=1).requires_grad_()
    loss = net.loss(net.compute({"data": data}, inner=inner))
    loss.backward()
    if net.context.deferred_gradients is not None:
        net.context.deferred_gradients.join()
    gradients = [each.grad for each in (data, *net.parameters())]
    kept = [blob for name, blobs in net.params.items() if "/bn" in name for blob in blobs]
    return [loss, *(each for each in gradients if each is not None), *kept]


def samplings(net: Net) -> list[Any]:
    """How the blobs are sampled that are, once for each sum."""
    groups = net.fusion.layers[False].values()
    return [group.sampling for group in groups if isinstance(group, Residual) and group.sampling]


@pytest.mark.parametrize(("text", "deferred"), [*((text, False) for text in NETS), (NETS[0], True)])
def test_a_net(text: str, deferred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose sums are made whole, whoever asks for gradients of weights."""
    wanted = results(build(text, monkeypatch), inner=True)
    net = build(text, monkeypatch)
    net.context.deferred_gradients = OnTheSpot() if deferred else None
    found = results(net, inner=False)
    assert len(samplings(net)) == 1 + text.count("stride: 3") // 2
    assert all(sampling.is_done for sampling in samplings(net))
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", WHOLE, ids=[f"net {at}" for at in range(len(WHOLE))])
def test_what_is_made_whole(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not samplings(build(text, monkeypatch))


def test_a_product_of_its_own_reads_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pruned layers have one, whose parameters do not change."""
    net = build(NETS[0], monkeypatch)
    reader = next(each for each in convolutions(net) if each.param.name == "enda")
    given: list[Tensor] = []

    def product(bottom: Tensor) -> tuple[Tensor, None]:
        given.append(bottom)
        return bottom[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last), None

    results(net, inner=False)
    assert samplings(net)[0].is_done
    reader.fixed_product = product
    results(net, inner=False)
    assert not samplings(net)[0].is_done
    assert given[0].shape == SHAPE


def test_a_sum_of_another_type_than_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not made by a convolution may be in float32 where convolutions are in bfloat16."""
    text = layer("bn", "BatchNorm", "data", "z") + layer("s", "Scale", "z", "z", SCALE)
    text += "layer { name: 'one' type: 'Eltwise' bottom: 'data' bottom: 'z' top: 'one' }"
    text += layer("r", "ReLU", "one", "one") + chain("end", "one", STRIDED) + LOSS
    net = build(text, monkeypatch, torch.bfloat16)
    wanted, _, *_ = results(net, inner=True)
    found, of_data, *_ = results(net, inner=False)
    assert samplings(net)[0].is_done
    assert of_data.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=0)
