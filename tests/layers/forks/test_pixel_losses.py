"""SigmoidCrossEntropyBalanceLoss and DiceCoefLoss against their sums, entry by entry."""

from __future__ import annotations

import numpy as np
import torch

from tests.layers.harness import check_gradients, draw, make_layer, refused, run

SHAPE = (2, 1, 3, 4)


def test_balance_of_ones_and_zeros() -> None:
    scores = 3 * draw(*SHAPE)
    targets = torch.tensor([[1.0, 0, 0, 0.25, 1, 0, 0, 0, 2, 0, 0, 0], [0.0] * 11 + [1]]).double()
    expected = 0.0
    for score, target in zip(scores.view(2, -1).tolist(), targets.tolist(), strict=True):
        sums = {1: 0.0, 0: 0.0}
        for x, y in zip(score, target, strict=True):
            if y in sums:
                sums[int(y)] += np.log1p(np.exp(x)) - x * y
        ones, zeros = target.count(1), target.count(0)
        expected += (sums[1] * zeros + sums[0] * ones) / (ones + zeros)
    layer = make_layer("type: 'SigmoidCrossEntropyBalanceLoss'", SHAPE, (2, 12))
    (loss,) = run(layer, scores, targets)
    np.testing.assert_allclose(loss, expected / 2, rtol=1e-12)
    leaf = scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, targets), (leaf,))


def test_nothing_to_balance() -> None:
    scores = draw(1, 4).requires_grad_()
    layer = make_layer("type: 'SigmoidCrossEntropyBalanceLoss'", (1, 4), (1, 4))
    for targets in (torch.zeros(1, 4), torch.full((1, 4), 0.5)):
        loss = layer(scores, targets.double())
        assert loss == 0
        loss.backward()
    assert scores.grad is not None
    assert not scores.grad.any()


def test_dice() -> None:
    first, second = draw(*SHAPE), draw(2, 12, seed=1)
    shares = [
        (2 * np.dot(a, b) + 1) / (np.dot(a, a) + np.dot(b, b) + 1)
        for a, b in zip(first.view(2, -1).numpy(), second.numpy(), strict=True)
    ]
    (loss,) = run(make_layer("type: 'DiceCoefLoss'", SHAPE, (2, 12)), first, second)
    np.testing.assert_allclose(loss, 1 - np.mean(shares), rtol=1e-12)


def test_gradients_of_dice() -> None:
    """Those of one are derivatives; in a batch each has the gradient that it has alone."""
    first, second = draw(3, 5), draw(3, 5, seed=1)
    check_gradients(make_layer("type: 'DiceCoefLoss'", (1, 5), (1, 5)), first[:1], second[:1])
    layer = make_layer("type: 'DiceCoefLoss'", (3, 5), (3, 5))
    together = [first.clone().requires_grad_(), second.clone().requires_grad_()]
    alone = [first.clone().requires_grad_(), second.clone().requires_grad_()]
    layer(*together).backward()
    for index in range(3):
        layer(*(leaf[index : index + 1] for leaf in alone)).backward()
    for leaf, other in zip(together, alone, strict=True):
        assert leaf.grad is not None
        assert other.grad is not None
        np.testing.assert_allclose(leaf.grad, other.grad, rtol=1e-12)


def test_what_does_not_fit() -> None:
    text = "type: 'SigmoidCrossEntropyBalanceLoss'"
    assert "24 scores need as many targets, not 2" in refused(text, (2, 12), (2,))
    assert "6 numbers for each" in refused("type: 'DiceCoefLoss'", (2, 6), (2, 3))
