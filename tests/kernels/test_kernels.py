"""Kernels in Triton against PyTorch in float64; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_dns import mask_rules
from caffe_dns.data.transform import Transform
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, TransformationParameter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
SGDKernel = import_module("caffe_dns.kernels.sgd").SGDKernel
products = import_module("caffe_dns.kernels.products")
SoftmaxLoss = import_module("caffe_dns.kernels.softmax_loss").SoftmaxLoss
transform = import_module("caffe_dns.kernels.transform").transform
BLOCK = 1024

SHAPES = [(3, 5), (BLOCK,), (BLOCK + 1,), (2, 3, 4, 4), (1,)]


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("l1", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(l1: bool, nesterov: bool) -> None:
    parameters = [draw(shape, seed) for seed, shape in enumerate(SHAPES)]
    parameters[3] = parameters[3].contiguous(memory_format=torch.channels_last)
    parameters[0][1] = 0
    histories = [torch.randn_like(parameter) for parameter in parameters]
    lr_mults, decays = [1.0, 2.0, 0.5, 3.0, 0.0], [0.25, 0.0, 0.125, 1.0, 0.5]
    expected = [parameter.double() for parameter in parameters]
    moments = [history.double() for history in histories]
    kernel = SGDKernel(
        parameters, histories, lr_mults, decays, momentum=0.75, l1=l1, nesterov=nesterov
    )
    for step in range(3):
        gradients = [draw(shape, 10 * step + seed) for seed, shape in enumerate(SHAPES)]
        rate = torch.tensor(0.5 / (step + 1), device=DEVICE)
        for index, (w, h, g) in enumerate(zip(expected, moments, gradients, strict=True)):
            decay = decays[index] * (w.sign() if l1 else w)
            new = 0.75 * h + float(rate) * lr_mults[index] * (g.double() + decay)
            w -= 1.75 * new - 0.75 * h if nesterov else new
            h.copy_(new)
        kernel.run(gradients, rate)
    for found, wanted in zip([*parameters, *histories], [*expected, *moments], strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "classes"), [(5, 10), (1, 1), (9, 1000), (7, 17)])
@pytest.mark.parametrize("label_type", [torch.float32, torch.int64])
def test_softmax_loss(rows: int, classes: int, label_type: torch.dtype) -> None:
    scores = (4 * draw((rows, classes), rows)).requires_grad_()
    labels = torch.arange(rows, device=DEVICE) * 7 % classes
    loss = SoftmaxLoss.apply(scores, labels.to(label_type), 0.25, 87.0)
    (2 * loss).backward()
    reference = scores.detach().double().requires_grad_()
    wanted = F.cross_entropy(reference, labels, reduction="sum") / 4
    (2 * wanted).backward()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=1e-6)
    assert scores.grad is not None
    assert reference.grad is not None
    torch.testing.assert_close(scores.grad.double(), reference.grad, rtol=1e-5, atol=1e-7)


def test_a_softmax_loss_is_limited_but_its_gradient_is_not() -> None:
    scores = torch.tensor([[200.0, 0.0], [0.0, 0.0]], device=DEVICE, requires_grad=True)
    loss = SoftmaxLoss.apply(scores, torch.ones(2, device=DEVICE), 1.0, 87.5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(87.5 + 0.693147)
    assert scores.grad is not None
    assert scores.grad.tolist() == [[1, -1], [0.5, -0.5]]


@pytest.mark.parametrize("label", [-1.0, 3.0])
def test_a_label_that_is_no_class_gives_nan(label: float) -> None:
    scores = draw((2, 3), 1).requires_grad_()
    labels = torch.tensor([0.0, label], device=DEVICE)
    assert SoftmaxLoss.apply(scores, labels, 1.0, 87.0).isnan()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("mean", ["none", "file", "value", "values"])
@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_transform(dtype: torch.dtype, mean: str, random: bool, phase: int) -> None:
    """To the last bit what PyTorch's own operations make of it on the CPU."""
    count, (channels, height, width) = 3, (3, 40, 51)
    param = TransformationParameter(crop_size=37, mirror=random, scale=0.017)
    param.mean_value.extend({"value": [104.25], "values": [104, 117.5, 123]}.get(mean, []))
    reference = Transform(param, phase)
    if mean == "file":
        reference.mean = 100 + draw((channels, height, width), 1).cpu()
    draws = torch.randint(1 << 31, (count, 3), generator=torch.Generator().manual_seed(2))
    cuts = torch.from_numpy(reference.cutter.cuts((channels, height, width), draws.numpy()))
    pixels = (50 * draw((count, channels, 37, 37), 3).cpu()).abs().to(dtype)
    some_cuts = cuts if reference.is_random else None
    wanted = reference.apply(pixels, some_cuts)
    found = transform(
        pixels.to(DEVICE),
        None if some_cuts is None else some_cuts.to(DEVICE),
        None if (part := reference._mean_on(torch.device("cpu"))) is None else part.to(DEVICE),
        reference._centre(),
        reference.scale,
    )
    assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products(dtype: torch.dtype) -> None:
    parameters = [draw(shape, seed) for seed, shape in enumerate(SHAPES)]
    parameters[3] = parameters[3].contiguous(memory_format=torch.channels_last)
    masks = [(draw(shape, 9).abs() > 0.5).float() for shape in SHAPES]
    masks[3] = masks[3].contiguous(memory_format=torch.channels_last)
    some = [*masks[:2], None, *masks[3:]]
    kernel = products.Products(parameters, some, dtype)
    for parameter in parameters:
        parameter.mul_(2).requires_grad_()
    found = [mask_rules.stand_in(*pair) for pair in zip(parameters, kernel.run(), strict=True)]
    for parameter, mask, product in zip(parameters, some, found, strict=True):
        wanted = parameter.detach() if mask is None else parameter.detach() * mask
        assert product.dtype == dtype
        assert product.stride() == parameter.stride()
        # Interpreted, Triton cuts digits off where a GPU rounds.
        rtol = 0 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(product.float(), wanted, rtol=rtol, atol=0)
    torch.stack([product.float().sum() for product in found[:4]]).sum().backward()
    for parameter in parameters[:4]:
        assert parameter.grad is not None
        assert bool((parameter.grad == 1).all())
    assert parameters[4].grad is None
