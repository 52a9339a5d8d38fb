"""The strongest of several layers, against a plain sort of all in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from caffe_dns.proto.caffe_pb2 import CInnerProductParameter
from caffe_dns.surgery import ranking
from caffe_dns.surgery.masked_layers import MaskedLayer
from caffe_dns.surgery.modules.adopted import AdoptedByMagnitude
from caffe_dns.surgery.modules.weights import PrunableWeight
from caffe_dns.surgery.ranking import Ranking

#: So many that most are kept or pruned by the histograms alone.
SHAPES = {"first": (100, 40), "second": (300, 50), "third": (7, 500), "fourth": (40, 20, 3, 3)}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FILLERS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "of one scale": lambda weight, generator: weight.normal_(generator=generator),
    "of scales far apart": lambda weight, generator: weight.normal_(generator=generator).mul_(
        1e-9 ** (len(weight) / 100)
    ),
    "with few values": lambda weight, generator: weight.random_(-9, 9, generator=generator),
    "with zeros": lambda weight, generator: weight.normal_(generator=generator).relu_(),
    "all but one zero": lambda weight, _: weight.zero_().index_fill_(0, torch.tensor(3), 0.5),
}


@pytest.fixture(autouse=True)
def few_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Histograms that nets of this size are larger than."""
    monkeypatch.setattr(ranking, "BINS", 512)
    monkeypatch.setattr(ranking, "_SHIFT", 22)


def make_layers(
    fill: Callable[[torch.Tensor, torch.Generator], torch.Tensor], device: str
) -> list[MaskedLayer]:
    generator = torch.Generator().manual_seed(5)
    layers = []
    for name, shape in SHAPES.items():
        values = fill(torch.empty(shape), generator)
        if values.dim() == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        weight = nn.Parameter(values.to(device))
        own = AdoptedByMagnitude(PrunableWeight(name, weight), CInnerProductParameter())
        layers.append(MaskedLayer(own))
        layers[-1].follow_sparsity()
    return layers


def strongest(layers: list[MaskedLayer], wanted: int, uses: list[int] | None) -> list[np.ndarray]:
    """The masks, from all strengths sorted; a threshold cuts those that are equal together."""
    strengths = [layer.strengths()[0].double().cpu().numpy().ravel() for layer in layers]
    scores = []
    for number, own in enumerate(strengths):
        squares = (own / max(own.max(), 1e-30)) ** 2
        order = np.argsort(-squares, kind="stable")
        score = np.empty_like(squares)
        score[order] = squares[order] / np.maximum(squares[order].cumsum(), 1e-300)
        score[order] /= 1 if uses is None else uses[number]
        score[order[0]] = np.inf
        scores.append(score)
    together = np.concatenate(scores)
    order = np.argsort(-together, kind="stable")
    costs = np.concatenate(
        [
            np.full(own.size, 1 if uses is None else uses[number])
            for number, own in enumerate(strengths)
        ]
    )
    kept = int((costs[order].cumsum() <= wanted).sum())
    limit = together[order[kept]] if kept < order.size else -1.0
    masks = []
    for own, score in zip(strengths, scores, strict=True):
        cut = own[score <= limit]
        masks.append(own > (cut.max() if cut.size else -1.0))
    return masks


@pytest.mark.parametrize("fill", FILLERS.values(), ids=FILLERS)
@pytest.mark.parametrize("uses", [None, [576, 64, 1, 9]], ids=["parameters", "multiplications"])
@pytest.mark.parametrize("device", DEVICES)
def test_against_a_sort_of_everything(
    fill: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
    uses: list[int] | None,
    device: str,
) -> None:
    layers = make_layers(fill, device)
    for layer, number in zip(layers, uses or [1] * len(layers), strict=True):
        layer.uses = number
    sizes = [layer.size for layer in layers]
    whole = sum(n * s for n, s in zip(uses or [1] * len(sizes), sizes, strict=True))
    ranked = Ranking(layers, in_macs=uses is not None)
    for share in (1.0, 0.999, 0.7, 0.3, 0.05, 0.001, 0.5, 1.0):
        wanted = int(share * whole)
        expected = strongest(layers, wanted, uses)
        ranked.keep(wanted)
        for layer, mask in zip(layers, expected, strict=True):
            assert np.array_equal(layer.layer.mask_blobs()[0].cpu().numpy().ravel() != 0, mask)


def test_what_lies_alike() -> None:
    """Strides of axes of size 1 say nothing: PyTorch's operations choose others than layers do."""
    point = torch.zeros(8, 4, 1, 1)
    inner = point.as_strided(point.shape, (4, 1, 4, 4))
    assert inner.stride() != point.stride()
    assert ranking._lie_alike(inner, point)
    square = torch.zeros(8, 4, 3, 3)
    assert not ranking._lie_alike(square.contiguous(memory_format=torch.channels_last), square)
    assert not ranking._lie_alike(square[:, ::2], square[:, ::2])
