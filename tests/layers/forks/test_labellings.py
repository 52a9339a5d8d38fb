"""CtcLoss and WarpCTCLoss against the sum over all ways to write a line; accuracies by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
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


@pytest.mark.parametrize("blank", [0, 2])
def test_warp_ctc_loss(blank: int) -> None:
    """The same lines in all forms; the gradient is that of the sum, by differences."""
    lines = LINES if blank == 0 else 2 - LINES
    text = f"type: 'WarpCTCLoss' ctc_loss_param {{ blank_index: {blank} }}"
    scores = draw(STEPS, BATCH, LABELS)
    expected = sum(costs(scores.numpy(), lines.numpy(), blank))
    short = [[label for label in line if label != blank] for line in lines.tolist()]
    lengths = torch.tensor([len(line) for line in short]).double()
    ends = torch.full((STEPS, BATCH), -1.0).double()
    for item, line in enumerate(short):
        ends[: len(line), item] = torch.tensor(line) - float(blank == 0)
    goes_on = torch.ones(STEPS, BATCH).double()
    goes_on[0] = 0
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(line) for line in short]).double()
    for others in (
        [lines],
        [lines[:, :, None, None]],
        [goes_on, ends],
        [torch.full((BATCH,), float(STEPS)).double(), lengths, padded],
    ):
        made = make_layer(text, scores.shape, *[tuple(other.shape) for other in others])
        leaf = scores.clone().requires_grad_()
        loss = made(leaf, *others)
        assert float(loss.detach()) == pytest.approx(expected / BATCH, rel=1e-10)
        loss.backward()
        assert leaf.grad is not None
        for at in ((0, 0, 1), (3, 2, 2)):
            sums = []
            for step in (1e-5, -1e-5):
                moved = scores.numpy().copy()
                moved[at] += step
                sums.append(sum(costs(moved, lines.numpy(), blank)))
            assert float(leaf.grad[at]) == pytest.approx((sums[0] - sums[1]) / 2e-5, rel=1e-6)


def test_sequences_that_end_before_the_last_step() -> None:
    text = "type: 'WarpCTCLoss'"
    scores = draw(STEPS, 2, LABELS)
    goes_on = torch.tensor([[0.0, 0], [1, 1], [0, 1], [1, 1]]).double()
    labels = torch.tensor([[1.0, 0], [-1, 1], [0, -1], [0, -1]]).double()  # from 0: 2, and 1 and 2
    given = make_layer(text, scores.shape, (STEPS, 2), (STEPS, 2))(scores, goes_on, labels)
    steps, lengths = torch.tensor([[2.0, 4], [1, 2]]).double()
    same = make_layer(text, scores.shape, (2,), (2,), (2, 2))
    assert float(same(scores, steps, lengths, torch.tensor([[2.0, 1], [0, 2]]))) == float(given)
    first, second = (
        make_layer(text, (count, 1, LABELS), (1, 2))(scores[:count, item, None], line)
        for item, count, line in (
            (0, 2, torch.tensor([[2.0, 0]])),
            (1, 4, torch.tensor([[1.0, 2]])),
        )
    )
    assert float(given) == pytest.approx(float(first + second) / 2, rel=1e-12)
    nothing = make_layer(text, (STEPS, 1, LABELS), (STEPS, 1), (STEPS, 1))
    assert float(nothing(scores[:, :1], goes_on[:, :1] * 0, -torch.ones(STEPS, 1).double())) == 0


def test_greedy_decoder() -> None:
    paths = [[0, 1, 1, 2], [2, 2, 0, 2], [1, 0, 1, 1], [0, 0, 0, 0]]
    scores = torch.nn.functional.one_hot(torch.tensor(paths), 3).double().transpose(0, 1)
    text = "type: 'CTCGreedyDecoder' ctc_decoder_param { %s }"
    lines = make_layer(text % "", (4, 4, 3))(scores)
    assert lines.shape == (4, 4, 1, 1)
    assert lines.flatten(1).tolist() == [
        [1, 2, -1, -1],
        [2, 2, -1, -1],
        [1, 1, -1, -1],
        [-1, -1, -1, -1],
    ]
    each = make_layer(text % "ctc_merge_repeated: false", (4, 4, 3))(scores)
    assert each.flatten(1).tolist()[:2] == [[1, 1, 2, -1], [2, 2, 2, -1]]
    last = make_layer(text % "blank_index: -1", (4, 4, 3))(scores)
    assert last.flatten(1).tolist()[:2] == [[0, 1, -1, -1], [0, -1, -1, -1]]
    # Right; one left out of two, one of three changed, nothing wanted and nothing found.
    labels = torch.tensor([[1, 2, 0], [2, 0, -1], [1, 2, 1], [0, 0, -1]]).double()
    top = make_layer(text % "", (4, 4, 3), (4, 3))(scores, labels)
    assert top.shape == (1, 2, 1, 1)
    np.testing.assert_allclose(top.flatten(), [1 - (1 / 2 + 1 / 3) / 4, 1 / 4], rtol=1e-12)


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
    assert "blank_index: is for layers of type WarpCTCLoss only" in refused(
        "type: 'CtcLoss' ctc_loss_param { blank_index: 1 }", *shapes
    )
    warp = "type: 'WarpCTCLoss' ctc_loss_param { %s }"
    assert "time_step: is for layers of type CtcLoss only" in refused(
        warp % "time_step: 1", *shapes
    )
    assert "blank_index: is none of the labels" in refused(warp % "blank_index: 3", *shapes)
    assert "T x N x C would be right" in refused(warp % "", (4, 2), (2, 5))
    assert "2 x L would be right, not (3, 5)" in refused(warp % "", (4, 2, 3), (3, 5))
    assert "4 x 2 would be right, not (4, 3)" in refused(warp % "", (4, 2, 3), (4, 2), (4, 3))
    made = make_layer(warp % "", (4, 2, 3), (2,), (2,), (5, 2))
    with pytest.raises(CaffeError, match="number of steps 5 is out of range; 0 to 4"):
        made(draw(4, 2, 3), torch.tensor([5.0, 1]), torch.ones(2), torch.ones(5, 2))
    decoder = "type: 'CTCGreedyDecoder'"
    assert "2 x L labels would be right" in refused(decoder, (4, 2, 3), (3, 5))
