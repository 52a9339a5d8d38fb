"""Losses on pairs against recorded cases, slow float64 references and gradcheck."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from tests.layers.build import make_layer
from tests.oracle import run_layer_case


@pytest.mark.parametrize("name", ["contrastive", "euclidean"])
def test_golden(name: str) -> None:
    run_layer_case(name)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def test_euclidean_loss_learns_from_both_bottoms() -> None:
    first, second = draw(3, 2, 4, seed=1), draw(3, 8, seed=2)
    layer = make_layer('type: "EuclideanLoss"', first.shape, second.shape)
    assert layer.no_force_backward == ()
    expected = ((first.numpy().reshape(3, 8) - second.numpy()) ** 2).sum() / 6
    np.testing.assert_allclose(layer(first, second), expected, rtol=1e-12)
    assert torch.autograd.gradcheck(layer, (first.requires_grad_(), second.requires_grad_()))


@pytest.mark.parametrize("legacy", [True, False])
def test_contrastive_loss(legacy: bool) -> None:
    text = (
        'type: "ContrastiveLoss" contrastive_loss_param '
        f"{{ margin: 2.5 legacy_version: {str(legacy).lower()} }}"
    )
    first, second = draw(6, 3, seed=1), draw(6, 3, 1, 1, seed=2)
    labels = torch.tensor([1.0, 0.0, 0.0, 0.5, 2.0, 0.0]).double()
    layer = make_layer(text, first.shape, second.shape, labels.shape)
    first.requires_grad_()
    second.requires_grad_()
    layer(first, second, labels).backward()
    loss, gradient = 0.0, np.zeros((6, 3))
    for i, label in enumerate(labels):
        difference = (first[i] - second[i].view(3)).detach().numpy()
        distance = np.sqrt((difference**2).sum())
        if int(label):
            loss += distance**2
            gradient[i] = difference
        elif legacy:
            loss += max(2.5 - distance**2, 0)
            gradient[i] = -difference * (distance**2 < 2.5)
        else:
            gap = max(2.5 - distance, 0)
            loss += gap**2
            gradient[i] = -gap / (distance + 1e-4) * difference
    np.testing.assert_allclose(layer(first, second, labels).detach(), loss / 12, rtol=1e-12)
    assert first.grad is not None
    assert second.grad is not None
    np.testing.assert_allclose(first.grad, gradient / 6, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(second.grad.view(6, 3), -gradient / 6, rtol=1e-12, atol=1e-15)


def test_labels_of_both_examples() -> None:
    first, second = draw(4, 3, seed=1), draw(4, 3, seed=2)
    labels = torch.tensor([7.0, 0.0, 3.0, 5.2]), torch.tensor([7.0, 0.0, 4.0, 5.4])
    similar = torch.tensor([1.0, 1.0, 0.0, 1.0])
    text = 'type: "ContrastiveLoss"'
    expected = make_layer(text, (4, 3), (4, 3), (4,))(first, second, similar)
    made = make_layer(text, (4, 3), (4, 3), (4,), (4, 1))
    assert made(first, second, labels[0], labels[1][:, None]) == expected


def test_equal_dissimilar_examples_have_a_finite_gradient() -> None:
    layer = make_layer('type: "ContrastiveLoss"', (2, 3), (2, 3), (2,))
    first = torch.ones(2, 3, requires_grad=True)
    loss = layer(first, torch.ones(2, 3), torch.zeros(2))
    assert loss.item() == 0.5
    loss.backward()
    assert first.grad is not None
    assert not first.grad.any()


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ('type: "EuclideanLoss"', [(2, 3), (2, 4)], "the bottoms differ in size: 2 3 "),
        ('type: "ContrastiveLoss"', [(2, 3), (2, 4), (2,)], "the bottoms differ in size"),
        ('type: "ContrastiveLoss"', [(2, 3, 2), (2, 6), (2,)], r"shape 2 3 2 \(12\) is not N x C"),
        ('type: "ContrastiveLoss"', [(2, 3), (2, 3), (3,)], "2 pairs need as many labels, not 3"),
        ('type: "ContrastiveLoss"', [(2, 3), (2, 3)], "takes 3 to 4 bottom"),
        ('type: "ContrastiveLoss"', [(2, 3), (2, 3), (2,), (4,)], "as many labels, not 4"),
    ],
)
def test_wrong_bottoms_are_named(text: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(CaffeError, match="layer 'layer': .*" + message):
        make_layer(text, *shapes)
