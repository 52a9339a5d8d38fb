"""CtcLoss against the sum over all ways to write a line, and LabelsequenceAccuracy, by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from tests.layers.harness import draw, make_layer, refused

STEPS, BATCH, LABELS = 4, 3, 3
LINES = torch.tensor([[1, 2, 0], [0, 2, 2], [1, 0, 0]]).double()


def collapsed(path: tuple[int, ...], blank: int) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label != blank]


def costs(scores: np.ndarray, lines: np.ndarray, blank: int) -> list[float]:
    """-log of the probability of all paths of labels that give each line."""
    found = []
    for item, line in enumerate(lines.astype(int)):
        rows = scores[:, item]
        odds = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
        total = sum(
            math.prod(odds[step, label] for step, label in enumerate(path))
            for path in itertools.product(range(LABELS), repeat=STEPS)
            if collapsed(path, blank) == [label for label in line if label != blank]
        )
        found.append(-math.log(total))
    return found


@pytest.mark.parametrize("blank", [0, 2])
def test_ctc_loss(blank: int) -> None:
    lines = LINES if blank == 0 else 2 - LINES
    text = (
        f"type: 'CtcLoss' ctc_loss_param {{ alphabet_size: {LABELS} time_step: {STEPS} "
        f"blank_label: {blank} }}"
    )
    made = make_layer(text, (STEPS + 1, BATCH, LABELS), (BATCH, 3))
    scores = draw(STEPS + 1, BATCH, LABELS).requires_grad_()
    loss = made(scores, lines)
    expected = costs(scores.detach().numpy()[:STEPS], lines.numpy(), blank)
    assert float(loss.detach()) == pytest.approx(sum(expected) / BATCH, rel=1e-10)
    # The gradient is that of the sum, by differences.
    (2 * loss).backward()
    assert scores.grad is not None
    assert not scores.grad[STEPS].any()
    for at in ((0, 0, 1), (2, 1, 0), (3, 2, 2)):
        sums = []
        for step in (1e-5, -1e-5):
            moved = scores.detach().numpy().copy()
            moved[at] += step
            sums.append(sum(costs(moved[:STEPS], lines.numpy(), blank)))
        assert float(scores.grad[at]) == pytest.approx((sums[0] - sums[1]) / 1e-5, rel=1e-5)


def test_a_line_without_room_costs_nothing() -> None:
    text = "type: 'CtcLoss' ctc_loss_param { alphabet_size: 3 time_step: 2 }"
    made = make_layer(text, (2, 1, 3), (1, 3))
    scores = draw(2, 1, 3).requires_grad_()
    loss = made(scores, torch.tensor([[1.0, 2, 1]]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_labelsequence_accuracy() -> None:
    paths = [[0, 1, 1, 2], [2, 2, 0, 2], [1, 1, 1, 0], [1, 0, 1, 1]]
    lines = [[1, 0, 2], [2, 2, 0], [1, 1, 0], [1, 1, 0]]
    scores = torch.nn.functional.one_hot(torch.tensor(paths), 3).double() + draw(4, 4, 3) * 0.01
    made = make_layer("type: 'LabelsequenceAccuracy'", (4, 4, 3), (4, 3))
    assert float(made(scores, torch.tensor(lines).double())) == 0.75
    assert [collapsed(tuple(path), 0) for path in paths] == [[1, 2], [2, 2], [1], [1, 1]]


def test_what_does_not_fit() -> None:
    text = "type: 'CtcLoss' ctc_loss_param { alphabet_size: 3 time_step: %d blank_label: %d }"
    shapes = (4, 2, 3), (2, 5)
    assert "time_step: must be given" in refused(text % (0, 0), *shapes)
    assert "blank_label: is none of" in refused(text % (1, 3), *shapes)
    assert "time_step: the bottom has 4 steps" in refused(text % (5, 0), *shapes)
    assert "T x N x 3 would be right" in refused(text % (1, 0), (4, 2, 2), (2, 5))
    assert "2 x L labels would be right" in refused(text % (1, 0), (4, 2, 3), (3, 5))
    assert "N x T x C and N x L" in refused("type: 'LabelsequenceAccuracy'", (4, 2, 3), (2, 5))
