"""Boxes as tensors against the same written out box by box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.layers.detection.boxes import BoxCode, areas, overlaps, suppress
from caffe_dns.proto.caffe_pb2 import PriorBoxParameter
from tests.layers.detection import reference

KINDS = list(PriorBoxParameter.CodeType.keys())


def draw_boxes(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand((*shape, 2), generator=generator, dtype=torch.float64)
    sides = torch.rand((*shape, 2), generator=generator, dtype=torch.float64) * 0.5 + 0.01
    return torch.cat([low, low + sides], -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_target", [True, False])
def test_codes(kind: str, in_target: bool) -> None:
    boxes, priors = draw_boxes(5), draw_boxes(5, seed=1)
    variances = draw_boxes(5, seed=2)
    code = BoxCode(PriorBoxParameter.CodeType.Value(kind), in_target)
    used = torch.ones_like(variances) if in_target else variances
    rows = [list(map(Tensor.tolist, group)) for group in zip(boxes, priors, used, strict=True)]
    encoded = code.encode(boxes, priors, variances)
    expected = np.array([reference.encode(kind, *row) for row in rows])
    np.testing.assert_allclose(encoded, expected, rtol=1e-12)
    decoded = code.decode(boxes, priors, variances)
    expected = np.array([reference.decode(kind, *row) for row in rows])
    np.testing.assert_allclose(decoded, expected, rtol=1e-12)
    np.testing.assert_allclose(code.decode(encoded, priors, variances), boxes, rtol=1e-12)


def test_areas_and_overlaps() -> None:
    boxes = torch.cat([draw_boxes(12), torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.5, 0.5, 0.5, 0.5]])])
    found = overlaps(boxes[:, None], boxes[None])
    for i, first in enumerate(boxes.tolist()):
        assert areas(boxes)[i] == pytest.approx(reference.area(first))
        for j, second in enumerate(boxes.tolist()):
            assert found[i, j] == pytest.approx(reference.overlap(first, second))
    assert bool((found[-2:] == 0).all())


@pytest.mark.parametrize("eta", [1.0, 0.8])
def test_suppress(eta: float) -> None:
    boxes = draw_boxes(3, 40)
    counts = [40, 25, 0]
    valid = torch.arange(40) < torch.tensor(counts)[:, None]
    stays = suppress(boxes, valid, 0.7 if eta < 1 else 0.3, eta)
    for row, count in enumerate(counts):
        kept = reference.suppress(
            boxes[row, :count].tolist(), range(count, 0, -1), 0.7 if eta < 1 else 0.3, eta=eta
        )
        assert stays[row].nonzero().flatten().tolist() == kept
        assert count == 0 or 1 < len(kept) < count
