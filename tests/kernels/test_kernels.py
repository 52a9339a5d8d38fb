"""Kernels in Triton against PyTorch in float64; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_dns import mask_rules
from caffe_dns.data.transform import Transform
from caffe_dns.device.determinism import always_the_same_bits
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, TransformationParameter
from caffe_dns.solver.update_rules import solver_types
from caffe_dns.solver.update_rules.sgd import SGD
from tests.nets import make_net
from tests.solver.harness import make_solver
from tests.solver.rules import NET, parse, put_gradients

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


@pytest.mark.parametrize("clip", [None, 10.0, 1e3])
@pytest.mark.parametrize("l1", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(l1: bool, nesterov: bool, clip: float | None) -> None:
    parameters = [draw(shape, seed) for seed, shape in enumerate(SHAPES)]
    parameters[3] = parameters[3].contiguous(memory_format=torch.channels_last)
    parameters[0][1] = 0
    histories = [torch.randn_like(parameter) for parameter in parameters]
    lr_mults, decays = [1.0, 2.0, 0.5, 3.0, 0.0], [0.25, 0.0, 0.125, 1.0, 0.5]
    expected = [parameter.double() for parameter in parameters]
    moments = [history.double() for history in histories]
    kernel = SGDKernel(
        parameters, histories, lr_mults, decays, momentum=0.75, l1=l1, nesterov=nesterov, clip=clip
    )
    for step in range(3):
        gradients = [draw(shape, 10 * step + seed) for seed, shape in enumerate(SHAPES)]
        for rounded in ((), (1, 3), (2, 3, 4))[step]:  # 3 has another layout than its parameter
            gradients[rounded] = gradients[rounded].bfloat16()
        rate = torch.tensor(0.5 / (step + 1), device=DEVICE)
        norm = float(torch.cat([gradient.double().flatten() for gradient in gradients]).norm())
        scale = clip / norm if clip is not None and clip < norm else 1.0
        for index, (w, h, g) in enumerate(zip(expected, moments, gradients, strict=True)):
            decay = decays[index] * (w.sign() if l1 else w)
            new = 0.75 * h + float(rate) * lr_mults[index] * (scale * g.double() + decay)
            w -= 1.75 * new - 0.75 * h if nesterov else new
            h.copy_(new)
        kernel.run(gradients, rate)
        if clip is None:
            assert kernel.norm is None
        else:
            torch.testing.assert_close(float(kernel.norm), norm, rtol=1e-6, atol=0)
    for found, wanted in zip([*parameters, *histories], [*expected, *moments], strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_gradients_that_come_rounded_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SGD, "_can_use_kernel", lambda rule: True)
    found: list[list[Tensor]] = []
    types: list[set[torch.dtype]] = []
    for rounded in (True, False):
        device = torch.device(DEVICE)
        solver = make_solver(tmp_path, device=device, activations=torch.bfloat16)
        if solver._captured is not None:
            solver._captured._deferred_gradients = None  # which brings them in float32
        learned = [param for param in solver.net.learnable_params if param.tensor.requires_grad]
        solver.rule.take_rounded(learned)
        if not rounded:
            for param in learned:
                param.tensor.grad_dtype = torch.float32
        update = solver.rule.apply_to
        types.append(set())

        def apply_to(gradients: list[Tensor], update: Any = update) -> None:
            types[-1].update(gradient.dtype for gradient in gradients)
            update(gradients)

        monkeypatch.setattr(solver.rule, "apply_to", apply_to)
        with always_the_same_bits(True):
            solver.step(3)
        solver.close()
        found.append([param.tensor.detach().cpu() for param in solver.net.learnable_params])
    assert torch.bfloat16 in types[0] and types[1] == {torch.float32}
    assert all(map(torch.equal, *found))


def test_gradients_come_rounded_only_where_nobody_else_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SGD, "_can_use_kernel", lambda rule: True)
    for settings in ("clip_gradients: 1", "iter_size: 2", "debug_info: true"):
        solver = make_solver(tmp_path, settings, device=torch.device("cpu"))
        solver.rule.take_rounded(solver.net.learnable_params)
        types = {param.tensor.grad_dtype for param in solver.net.learnable_params}
        assert types == {torch.float32}, settings
        solver.close()


@pytest.mark.parametrize("settings", ["", "iter_size: 2", "type: 'Nesterov'", "larc: true"])
def test_clipping_by_the_kernel(settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for uses_kernel in (True, False):
        monkeypatch.setattr(SGD, "_can_use_kernel", lambda rule, it=uses_kernel: it)
        net = make_net(NET).to(DEVICE)
        param = parse(f"momentum: 0.9 clip_gradients: 2 {settings}")
        rule = solver_types[param.type](param, net.learnable_params)
        rule.rate.fill_(0.5)
        for step in range(2):
            put_gradients(net, step)
            rule.apply()
        assert rule.norm is not None
        found.append([rule.norm, *(p.tensor.detach() for p in net.learnable_params)])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


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
    given = torch.zeros(pixels.shape, device=DEVICE)
    for into, fits in ((None, False), (given, True), (given[:, :1], False), (given.half(), False)):
        found = transform(
            pixels.to(DEVICE),
            None if some_cuts is None else some_cuts.to(DEVICE),
            None if (part := reference._mean_on(torch.device("cpu"))) is None else part.to(DEVICE),
            reference._centre(),
            reference.scale,
            into,
        )
        assert torch.equal(found.cpu(), wanted)
        assert (found is into) == fits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("large", [1, BLOCK, products.LARGE])
def test_products(dtype: torch.dtype, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them large, some and none."""
    monkeypatch.setattr(products, "LARGE", large)
    parameters = [draw(shape, seed) for seed, shape in enumerate(SHAPES)]
    parameters[3] = parameters[3].contiguous(memory_format=torch.channels_last)
    masks = [(draw(shape, 9).abs() > 0.5).float() for shape in SHAPES]
    masks[3] = masks[3].contiguous(memory_format=torch.channels_last)
    some = [*masks[:2], None, *masks[3:]]
    kernel = products.Products(parameters, some, dtype)
    for parameter in parameters:
        parameter.mul_(2).requires_grad_()
    made = [one if isinstance(one, Tensor) else one() for one in kernel.run()]
    found = [mask_rules.stand_in(*pair) for pair in zip(parameters, made, strict=True)]
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
