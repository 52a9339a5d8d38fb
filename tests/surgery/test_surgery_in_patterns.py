"""Surgery in patterns, against plain loops over the rows of masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Context
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.surgery import Surgeon, plan
from tests.nets import input_layer, layer, make_net
from tests.solver.harness import whole_and_resumed
from tests.surgery.test_target import disturb
from tests.surgery.test_target_macs import (
    DENSE,
    FREE,
    USES,
    macs_left,
    net_text,
    solver_of,
    surgeon_of,
)

STAGES = "display: 1 max_iter: 14 surgery_stage {{ iterations: 14 interval: 2 end_iter: 7 {} }}"


def rows(array: torch.Tensor) -> np.ndarray:
    """A weight or its mask, outputs x inputs, the channels of a convolution innermost."""
    numbers = array.detach().double().numpy()
    if numbers.ndim == 4:
        numbers = numbers.transpose(0, 2, 3, 1)
    return numbers.reshape(len(numbers), -1)


def groups(matrix: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for row in matrix:
        yield from (row[start : start + size] for start in range(0, len(row), size))


def holds(pattern: str, mask: torch.Tensor) -> bool:
    if pattern == "2:4":
        return all(group.sum() <= 2 for group in groups(rows(mask), 4))
    return all(len(set(group)) == 1 for group in groups(rows(mask), 4))


def rms(group: np.ndarray) -> float:
    return float(np.sqrt(np.mean(group**2)))


def strengths(net: Net, name: str, kind: str) -> np.ndarray:
    """Up to which threshold each weight is kept, with hysteresis."""
    weight, mask = rows(net.params[name][0]), rows(net.params[name][2])
    distance = np.abs(weight - (weight.mean() if kind == "deviation" else 0))
    return distance / np.where(mask == 1, 0.9, 1.1)


@pytest.mark.parametrize("kind", ["official", "deviation"])
@pytest.mark.parametrize("pattern", ["2:4", "1x4"])
@pytest.mark.parametrize("target", ["sparsity: 0.8", "compression: 5", "macs: 0.3"])
def test_a_target_in_a_pattern(kind: str, pattern: str, target: str) -> None:
    net, surgeon = surgeon_of(kind, f"{target} pattern: '{pattern}'")
    for iteration in range(61):
        disturb(net, iteration)
        before = {name: strengths(net, name, kind) for name in USES}
        surgeon.update_masks(iteration)
        for name, values in before.items():
            mask = net.params[name][2]
            assert holds(pattern, mask)
            if iteration == 60:
                assert 0 < mask.sum() < mask.numel()
                check_strongest(pattern, values, rows(mask))
    count = sum(layer.kept() for layer in surgeon.masked_layers)
    size = sum(layer.size for layer in surgeon.masked_layers)
    if target.startswith("macs"):
        least = 0.3 * (DENSE + FREE) - 4 * max(USES.values())
        assert least < macs_left(net, kind) + FREE <= 0.3 * (DENSE + FREE)
    elif target.startswith("sparsity"):
        assert 0.2 * size - 4 < count <= 0.2 * size
    else:
        total = sum(p.tensor.numel() for p in net.learnable_params if not p.is_mask)
        assert total / 5 - 4 < count + total - size <= total / 5


def check_strongest(pattern: str, values: np.ndarray, mask: np.ndarray) -> None:
    """What is kept is stronger than what is not, if its pattern has a place for it."""
    units = list(zip(groups(values, 4), groups(mask, 4), strict=True))
    if pattern == "1x4":
        kept = [rms(group) for group, mine in units if mine.all()]
        cut = [rms(group) for group, mine in units if not mine.any()]
    else:
        kept = [value for group, mine in units for value in group[mine == 1]]
        cut = [v for group, mine in units if mine.sum() < 2 for v in group[mine == 0]]
        for group, mine in units:
            best = np.argsort(-group, kind="stable")[: int(mine.sum())]
            assert mine[best].all()
    assert min(kept) > max(cut) * (1 - 1e-6)


@pytest.mark.parametrize("kind", ["official", "deviation"])
@pytest.mark.parametrize("pattern", ["2:4", "1x4"])
def test_a_threshold_in_a_pattern(kind: str, pattern: str) -> None:
    """Cut below 0.9 of it, spliced back above 1.1, among those that the pattern has a place for."""
    setting = "threshold: 0.8" if kind == "deviation" else "c_rate: 0.3"
    net, surgeon = surgeon_of(kind, f"layer {{ name: 'narrow' {setting} pattern: '{pattern}' }}")
    came_back = 0.0
    for iteration in range(40):
        disturb(net, iteration)
        values, before = strengths(net, "narrow", kind), rows(net.params["narrow"][2])
        surgeon.update_masks(iteration)
        mask = rows(net.params["narrow"][2])
        if surgeon.is_due(iteration):
            weight = rows(net.params["narrow"][0])
            moments = surgeon.moments()
            limit = (
                0.8 * weight.std()
                if kind == "deviation"
                else moments[-1].mu + 0.3 * moments[-1].sigma
            )
            for group, mine in zip(groups(values, 4), groups(mask, 4), strict=True):
                expected = np.zeros(len(group))
                if pattern == "1x4":
                    expected[:] = rms(group) > limit
                else:
                    best = np.argsort(-group, kind="stable")[:2]
                    expected[best] = group[best] > limit
                np.testing.assert_array_equal(mine, expected)
        came_back += ((mask == 1) & (before == 0)).sum()
    assert came_back > 0
    assert net.params["wide"][2].all()


@pytest.mark.parametrize("kind", ["", "C"])
@pytest.mark.parametrize("pattern", ["2:4", "1x4"])
def test_a_resumed_run_is_the_same(tmp_path: Path, kind: str, pattern: str) -> None:
    stages = STAGES.format(f"sparsity: 0.7 pattern: '{pattern}'")
    _, second = whole_and_resumed(lambda folder: solver_of(folder, kind, stages), tmp_path, 5, 14)
    for name in ("conv", "ip1", "ip2"):
        assert holds(pattern, second.net.params[name][2])


def test_the_inputs_of_a_transposed_weight() -> None:
    settings = "num_output: 6 transpose: true weight_filler { type: 'gaussian' std: 1 }"
    net = make_net(
        input_layer(data=(2, 8))
        + layer("wide", "InnerProduct", "data", "wide", f"inner_product_param {{ {settings} }}")
    )
    text = "max_iter: 2 lr_policy: 'fixed' surgery_stage { pattern: '2:4' sparsity: 0.5 }"
    Surgeon.of_net(net, plan(parse_text(text, SolverParameter).message), 1).update_masks(0)
    mask = net.params["wide"][2]
    assert mask.shape == (8, 6)
    assert holds("2:4", mask.t())


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("pattern: '4:2'", "surgery_stage[0].pattern: '4:2' is no pattern; known: N:M"),
        (
            "layer { name: 'wide' pattern: '1x0' }",
            "surgery_stage[0].pattern: '1x0' is no pattern; known: N:M",
        ),
        (
            "surgery: false pattern: '2:4'",
            "surgery_stage[0].pattern: without surgery, masks stay as they are",
        ),
    ],
)
def test_what_is_no_pattern(stage: str, message: str) -> None:
    with pytest.raises(CaffeError) as error:
        surgeon_of("deviation", stage)
    assert str(error.value).startswith(message)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["official", "deviation"])
@pytest.mark.parametrize("pattern", ["2:4", "1x4", "filter"])
@pytest.mark.parametrize("target", ["macs: 0.4", "sparsity: 0.7", "layer { name: 'narrow' SET }"])
def test_on_a_gpu(kind: str, pattern: str, target: str) -> None:
    """What a CPU does, also where a CUDA graph is replayed."""
    target = target.replace("SET", "threshold: 0.8" if kind == "deviation" else "c_rate: 0.3")
    param: SolverParameter = parse_text(
        f"lr_policy: 'fixed' surgery_stage {{ iterations: 100 interval: 10 end_iter: 60 {target} "
        f"pattern: '{pattern}' }}",
        SolverParameter,
    ).message
    nets = [
        make_net(net_text(kind), context=Context(device=torch.device(device)))
        for device in ("cpu", "cuda")
    ]
    surgeons = [Surgeon.of_net(net, plan(param), 1) for net in nets]
    for iteration in range(61):
        disturb(nets[0], iteration)
        for surgeon in surgeons:
            for own, other in zip(*(net.learnable_params for net in nets), strict=True):
                if not own.is_mask:
                    other.tensor.data.copy_(own.tensor.data)
            surgeon.update_masks(iteration)
    masks = [[p.tensor.cpu() for p in net.learnable_params if p.is_mask] for net in nets]
    for own, other in zip(*masks, strict=True):
        assert own.dim() == 1 or own.any()  # all biases of a layer may go
        assert torch.equal(own, other)
