"""Pruning under autocast, loss scaling, DDP, ZeRO, torch.compile, torch.export and CUDA graphs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import caffe_dns
from caffe_dns.surgery.modules import Pruner
from tests.surgery.modules.models import (
    LanguageModel,
    ResNet,
    images,
    sentences,
    tiny,
    tiny_batch,
    train,
)

STEPS = 12


def begin() -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
    torch.manual_seed(0)
    model = ResNet()
    pruner = caffe_dns.prune(model, compression=4, steps=STEPS, interval=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    return model, optimizer, pruner


def trained() -> tuple[nn.Module, Pruner]:
    model, optimizer, pruner = begin()
    train(model, optimizer, STEPS, images(), pruner.step)
    return model, pruner


def whole(pruner: Pruner) -> list[Tensor]:
    """The weights, what is pruned and what is kept."""
    weights = pruner.weights
    return [
        parameter.detach() + pruned
        for parameter, pruned in zip(weights.parameters, weights.pruned, strict=True)
    ]


def same(pruner: Pruner, expected: Pruner, tolerance: float = 0) -> None:
    for name, mask in pruner.masks().items():
        assert torch.equal(mask, expected.masks()[name]), name
    for mine, theirs in zip(whole(pruner), whole(expected), strict=True):
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("group")
def test_ddp_and_zero() -> None:
    with warnings.catch_warnings():  # of what it imports
        warnings.simplefilter("ignore")
        from torch.distributed.optim import ZeroRedundancyOptimizer

    _, expected = trained()
    for zero in (False, True):
        model, optimizer, pruner = begin()
        if zero:
            optimizer = ZeroRedundancyOptimizer(
                model.parameters(), torch.optim.AdamW, lr=0.01, weight_decay=0.1
            )
        train(DistributedDataParallel(model), optimizer, STEPS, images(), pruner.step)
        same(pruner, expected)


def test_autocast() -> None:
    model, optimizer, pruner = begin()
    data, wanted = images()
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = model(data)
        assert scores.dtype == torch.bfloat16
        F.cross_entropy(scores.float(), wanted).backward()
        optimizer.step()
        pruner.step()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert pruner.report().splitlines()[-1].startswith(f"Kept in all: {total // 4} of {total} ")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(data)
        pruner.apply()
        assert torch.equal(model(data), before)


def test_a_step_that_loss_scaling_leaves_out() -> None:
    model, optimizer, pruner = begin()
    scaler = torch.amp.GradScaler("cpu")
    before = whole(pruner)
    scaler.scale(model(images()[0]).sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    pruner.step()
    for weight, old in zip(whole(pruner), before, strict=True):
        assert torch.equal(weight, old)
    assert pruner.iteration == 1


def test_an_optimizer_that_steps_within_backward() -> None:
    model = tiny()
    pruner = caffe_dns.prune(model, sparsity=0.5, steps=10)
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)
    model[3].weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    data, wanted = tiny_batch(0)
    with pytest.raises(ValueError, match="an optimizer stepped within backward, which still reads"):
        F.cross_entropy(model(data), wanted).backward()
    assert pruner.iteration == 0


@pytest.mark.slow
def test_export_of_a_model_in_training() -> None:
    model, pruner = trained()
    data = images()[0]
    model.eval()
    program = torch.export.export(model, (data,))
    torch.testing.assert_close(program.module()(data), model(data))
    for name, mask in pruner.masks().items():
        assert torch.equal(program.state_dict[name] != 0, mask)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_compiled(part: str) -> None:
    """By Inductor on a GPU; on a CPU, where it takes minutes, all but its code is what runs."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = "inductor" if torch.cuda.is_available() else "aot_eager"
    pruners = []
    for compiled in (False, True):
        model = tiny().to(device)
        pruner = caffe_dns.prune(model, sparsity=0.7, steps=STEPS, interval=2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        run: Callable[[Tensor], Tensor] = model
        if compiled and part == "model":
            run = torch.compile(model, backend=backend)
        elif compiled:
            step = torch.compile(optimizer.step, backend=backend)
            optimizer.step = step  # type: ignore[method-assign]
        data, wanted = tiny_batch(0)
        train(run, optimizer, STEPS, (data.to(device), wanted.to(device)), pruner.step)
        pruners.append(pruner)
    same(pruners[1], pruners[0], 1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", [ResNet, LanguageModel])
def test_a_recorded_iteration_on_a_gpu(
    make: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA graph of forward, backward and the optimizer's step, replayed: as without a graph.

    AdamW makes much of the last bits of a small gradient, which differ from one run of cuDNN's
    fastest kernels to the next.
    """
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    problem = images() if make is ResNet else sentences()
    data, wanted = (tensor.cuda() for tensor in problem)
    torch.manual_seed(0)
    model = make().cuda()
    twin = copy.deepcopy(model)
    results = []
    for net, recorded in ((model, False), (twin, True)):
        pruner = caffe_dns.prune(net, sparsity=0.8, steps=40, interval=3)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, capturable=True)

        def iteration(net: nn.Module = net, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad(set_to_none=False)
            F.cross_entropy(net(data).flatten(0, -2), wanted.flatten()).backward()
            optimizer.step()

        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                iteration()
                pruner.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if recorded:
            with torch.cuda.graph(graph):
                iteration()
        for _ in range(30):
            if recorded:
                graph.replay()
            else:
                iteration()
            pruner.step()
        results.append(pruner)
    same(results[1], results[0], 1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_does_not_belong_into_a_graph() -> None:
    pruner = caffe_dns.prune(nn.Linear(4, 4).cuda(), sparsity=0.5, steps=10)
    with (
        pytest.raises(ValueError, match="belongs behind the replay of a CUDA graph"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        torch.zeros(1, device="cuda")  # PyTorch warns of a graph with nothing in it
        pruner.step()
