"""InnerDistance and GeneralContrastiveLoss against happynear's loops, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.layers.base import Layer
from tests.layers.harness import check_gradients, draw, make_layer, refused, run

SHAPE = (4, 3, 2)
LABELS = torch.tensor([1.0, 0, 4, 1]).double()


def distance_text(settings: str) -> str:
    return f"type: 'InnerDistance' inner_distance_param {{ num_output: 5 {settings} }}"


def distance(settings: str, *shapes: tuple[int, ...]) -> Layer:
    made = make_layer(distance_text(settings), SHAPE, *shapes).double()
    for blob in made.blobs:
        blob.data.copy_(draw(*blob.shape, seed=7))
    return made


def slow_distances(items: np.ndarray, centres: np.ndarray, kind: str) -> np.ndarray:
    top = np.zeros((len(items), len(centres)))
    for m, n in np.ndindex(*top.shape):
        difference = items[m].ravel() - centres[n].ravel()
        top[m, n] = (difference**2).sum() if kind == "L2" else np.abs(difference).sum()
    return top


@pytest.mark.parametrize("kind", ["L1", "L2"])
def test_distances(kind: str) -> None:
    made, x = distance(f"distance_type: '{kind}'"), draw(*SHAPE)
    centres = made.blobs[0].detach().numpy()
    expected = slow_distances(x.numpy(), centres, kind)
    np.testing.assert_allclose(run(made, x)[0].detach(), expected, rtol=1e-12)
    check_gradients(made, x)
    given = make_layer(distance_text(f"distance_type: '{kind}'"), SHAPE, (5, 6))
    np.testing.assert_allclose(run(given, x, torch.tensor(centres))[0], expected, rtol=1e-12)
    check_gradients(given, x, torch.tensor(centres))
    assert not given.blobs


def test_distances_of_rows() -> None:
    made = make_layer(distance_text("axis: 2"), SHAPE).double()
    x = draw(*SHAPE)
    expected = slow_distances(x.numpy().reshape(12, 2), np.zeros((5, 2)), "L2").reshape(4, 3, 5)
    np.testing.assert_allclose(run(made, x)[0].detach(), expected, rtol=1e-12)


def test_centres_of_length_one() -> None:
    made, x = distance("normalize: true"), draw(*SHAPE)
    before = made.blobs[0].detach().numpy().copy()
    wanted = before / np.sqrt((before**2).sum(1, keepdims=True) + 1e-6)
    top = made(x).detach().numpy()
    np.testing.assert_allclose(made.blobs[0].detach(), wanted, rtol=1e-12)
    np.testing.assert_allclose(top, slow_distances(x.numpy(), wanted, "L2"), rtol=1e-12)


@pytest.mark.parametrize("kind", ["L1", "L2"])
def test_centres_that_learn_from_their_own(kind: str) -> None:
    made = distance(f"distance_type: '{kind}' update_center_only: true", (4,))
    x, gradient = draw(*SHAPE).requires_grad_(), draw(4, 5, seed=3)
    centres = made.blobs[0].detach().numpy()
    top = made(x, LABELS)
    np.testing.assert_allclose(
        top.detach(), slow_distances(x.detach().numpy(), centres, kind), rtol=1e-12
    )
    top.backward(gradient)
    items, given = x.detach().numpy().reshape(4, 6), gradient.numpy()
    of_items, of_centres = np.zeros((4, 6)), np.zeros((5, 6))
    for m, n in np.ndindex(4, 5):
        along = items[m] - centres[n]
        slope = 2 * along if kind == "L2" else np.sign(along)
        of_items[m] += given[m, n] * slope
        if n == int(LABELS[m]):
            of_centres[n] -= given[m, n] * slope
    assert x.grad is not None and made.blobs[0].grad is not None
    np.testing.assert_allclose(x.grad.reshape(4, 6), of_items, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(made.blobs[0].grad, of_centres, rtol=1e-9, atol=1e-12)


def test_what_distances_refuse() -> None:
    text = "type: 'InnerDistance' inner_distance_param {{ {} }}"
    for settings, shapes, message in (
        ("", [SHAPE], "num_output: must be given and positive"),
        ("num_output: 2 transpose: true", [SHAPE], "transpose: is not supported; false would do"),
        ("distance_type: 'L3'", [SHAPE], "is 'L3'; known: L1, L2"),
        ("num_output: 2", [SHAPE, (5, 6), (4,)], "3 bottoms; items, perhaps centres, and labels"),
        ("", [SHAPE, (5, 7)], "items of 6 numbers and centres (5, 7)"),
        ("num_output: 2 update_center_only: true", [SHAPE, (3,)], "4 labels would be right"),
    ):
        assert message in refused(text.format(settings), *shapes)


def loss_text(settings: str) -> str:
    return (
        "type: 'GeneralContrastiveLoss' general_contrastive_loss_param { "
        f"positive_weight: 2 negative_weight: 0.5 {settings} }}"
    )


def slow_loss(distances: Tensor, settings: dict[str, float], exp: bool) -> tuple[float, np.ndarray]:
    """The loss and its gradient, entry by entry."""
    low, high = settings["positive_margin"], settings["negative_margin"]
    most = settings["positive_outlier_thresh"]
    loss, gradient = 0.0, np.zeros(tuple(distances.shape))
    for (i, j), value in np.ndenumerate(distances.numpy()):
        if j == int(LABELS[i]):
            loss += 2 * min(most, max(0.0, value - low))
            gradient[i, j] = 2.0 * (low < value < most)
        elif value < high:
            loss += 0.5 * (np.exp(-value) if exp else high - value)
            gradient[i, j] = -0.5 * (np.exp(-value) if exp else 1)
    return loss / len(distances), gradient / len(distances)


@pytest.mark.parametrize("exp", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"positive_margin": 0.0, "negative_margin": 1.0, "positive_outlier_thresh": 4.0},
        {"positive_margin": 0.3, "negative_margin": 2.0, "positive_outlier_thresh": 0.9},
    ],
)
def test_general_contrastive_loss(settings: dict[str, float], exp: bool) -> None:
    text = " ".join(f"{name}: {value}" for name, value in settings.items())
    made = make_layer(
        loss_text(text + f" exp_negative_weight: {str(exp).lower()}"), (4, 5), (4,), tops=2
    )
    x = draw(4, 5, positive=True)
    single = {name: float(np.float32(value)) for name, value in settings.items()}
    loss, gradient = slow_loss(x, single, exp)
    found, means = run(made, x.requires_grad_(), LABELS)
    assert float(found.detach()) == pytest.approx(loss, rel=1e-12)
    found.backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, gradient, rtol=1e-12)
    own = x.detach()[torch.arange(4), LABELS.long()]
    far = (own - single["positive_margin"]).clamp(0, single["positive_outlier_thresh"])
    others = torch.ones(4, 5, dtype=torch.bool)
    others[torch.arange(4), LABELS.long()] = False
    near = (single["negative_margin"] - x.detach()[others]).clamp(min=0)
    np.testing.assert_allclose(means, [far.mean(), near.mean()], rtol=1e-12)


def test_what_the_loss_refuses() -> None:
    shapes = ((4, 5), (4,))
    assert "positive_first: is not supported; false would do" in refused(
        loss_text("positive_first: true"), *shapes
    )
    assert "normalize_negative: is not supported" in refused(
        loss_text("normalize_negative: 1"), *shapes
    )
    assert "N x classes and N would be right" in refused(loss_text(""), (4, 1), (4,))
    negative = "type: 'GeneralContrastiveLoss' general_contrastive_loss_param { %s: -1 }"
    for name in ("positive_weight", "negative_weight"):
        assert f"{name}: must be at least 0" in refused(negative % name, *shapes)
