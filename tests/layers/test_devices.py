"""Layers of forks and of SSD in float32 on each device, against float64 on a CPU.

The latter is held to the layers' definitions by the tests of each; on a GPU, kernels are others and
sums have another order.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from caffe_dns.layers import Context, Layer
from tests.layers import tensor_cases
from tests.layers.device_cases import ALL, Case
from tests.layers.harness import draw, make_layer
from tests.oracle import assert_close

CASES = ALL | tensor_cases.CASES
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    ),
]


def build(case: Case, device: str, kind: torch.dtype) -> Layer:
    """The layer with the same weights on every device."""
    context = Context(device=torch.device(device))
    shapes = [tuple(bottom.shape) for bottom in case.bottoms]
    layer = make_layer(case.definition, *shapes, tops=case.tops, context=context).to(kind)
    with torch.no_grad():
        for index, blob in enumerate(layer.blobs):
            statistic = layer.type in ("BN", "BatchNorm") and index >= 2
            blob.copy_(draw(*blob.shape, seed=30 + index, positive=statistic))
    return layer.to(device)


def passes(case: Case, device: str, kind: torch.dtype) -> dict[str, Tensor]:
    """Tops, gradients of bottoms and weights, and what the blobs are afterwards."""
    layer = build(case, device, kind)
    bottoms = [bottom.detach().to(device, kind) for bottom in case.bottoms]
    for index in case.learned:
        bottoms[index].requires_grad_()
    result = layer(*bottoms)
    tops = [result] if isinstance(result, Tensor) else list(result)
    assert all(top.device.type == device for top in tops)
    if case.learned:
        weighted = [
            (top * draw(*top.shape, seed=60 + index).to(device, kind)).sum()
            for index, top in enumerate(tops)
            if top.requires_grad
        ]
        torch.stack(weighted).sum().backward()
    found = {f"top {index}": top for index, top in enumerate(tops)}
    leaves = [*(bottoms[index] for index in case.learned), *layer.parameters()]
    for index, leaf in enumerate(leaves):
        if leaf.grad is not None:
            found[f"gradient {index}"] = leaf.grad
    found |= {f"blob {index}": blob for index, blob in enumerate(layer.blobs)}
    return {name: value.detach().cpu().double() for name, value in found.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sorted(CASES))
def test_layer(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    case = CASES[name]
    expected = passes(case, "cpu", torch.float64)
    actual = passes(case, device, torch.float32)
    assert actual.keys() == expected.keys()
    assert len(expected) > len(case.learned)
    for key, value in expected.items():
        assert_close(actual[key], value.numpy(), f"{name}, {key}")
