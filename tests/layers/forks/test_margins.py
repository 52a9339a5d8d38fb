"""Margins and centres against their definitions, item by item, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from tests.layers.harness import draw, make_layer, refused, run

KINDS = ["SINGLE", "DOUBLE", "TRIPLE", "QUADRUPLE"]
LABELS = torch.tensor([0, 3, 1, 3, 2, 0, 1], dtype=torch.float64)
SHARE = max(10 * (1 + 0.5 * 3) ** -2.0, 0.25)
FIELDS = {
    "LargeMarginInnerProduct": "largemargin_inner_product_param",
    "MarginInnerProduct": "margin_inner_product_param",
}
SETTINGS = "num_output: 4 base: 10 gamma: 0.5 power: 2 iteration: 2 lambda_min: 0.25"


def margin_text(type: str, times: int) -> str:
    return f"type: '{type}' {FIELDS[type]} {{ {SETTINGS} type: {KINDS[times - 1]} }}"


def psi(times: int, cosine: float) -> float:
    """(-1)^k cos(m * angle) - 2k, where the angle is between k and k + 1 m-ths of pi."""
    angle = math.acos(cosine)
    part = min(int(angle * times / math.pi), times - 1)
    return float((-1) ** part * math.cos(times * angle) - 2 * part)


@pytest.mark.parametrize("times", [1, 2, 3, 4])
@pytest.mark.parametrize("type", FIELDS)
def test_scores(type: str, times: int) -> None:
    made = make_layer(margin_text(type, times), (7, 2, 3), (7,), tops=2).double()
    x, w = draw(7, 2, 3), draw(4, 6, seed=1)
    with torch.no_grad():
        made.blobs[0].copy_(w)
    scores, share = run(made, x, LABELS)
    weights: np.ndarray = w.numpy()
    if type == "MarginInnerProduct":
        weights = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    assert np.allclose(made.blobs[0].detach(), weights, rtol=1e-12)
    expected = np.asarray(x.flatten(1)) @ weights.T
    for item, label in enumerate(LABELS.int().tolist()):
        row = x[item].flatten().numpy()
        norms = np.linalg.norm(row) * np.linalg.norm(weights[label])
        plain = row @ weights[label]
        margin = norms * psi(times, plain / norms)
        expected[item, label] = (margin + SHARE * plain) / (1 + SHARE)
    np.testing.assert_allclose(scores.detach(), expected, rtol=1e-7)
    assert share.tolist() == pytest.approx([SHARE], rel=1e-12)


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_gradients_of_large_margins(times: int) -> None:
    made = make_layer(margin_text("LargeMarginInnerProduct", times), (7, 5), (7,)).double()

    def forward(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        top: torch.Tensor = torch.func.functional_call(made, {"weight": weight}, (x, LABELS))[0]
        return top

    bottom, weight = draw(7, 5).requires_grad_(), draw(4, 5, seed=9).requires_grad_()
    assert torch.autograd.gradcheck(forward, (bottom, weight))


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_gradients_of_angular_margins(times: int) -> None:
    """The weight's is that of inner products; the own class's counts by its direction alone."""
    made = make_layer(margin_text("MarginInnerProduct", times), (7, 5), (7,)).double()
    x, given = draw(7, 5).requires_grad_(), draw(7, 4, seed=2)
    with torch.no_grad():
        made.blobs[0].copy_(draw(4, 5, seed=1))
    (top,) = run(made, x, LABELS)
    (top * given).sum().backward()
    weight = made.blobs[0]
    assert weight.grad is not None and x.grad is not None
    np.testing.assert_allclose(weight.grad, given.T @ x.detach(), rtol=1e-12)
    expected = (given @ weight.detach()).numpy()
    for item, label in enumerate(LABELS.int().tolist()):
        own = weight[label].detach()
        plain = x[item].detach().clone().requires_grad_()
        cosine = (plain * own).sum() / plain.norm()
        part = min(int(math.acos(cosine.detach()) * times / math.pi), times - 1)
        value = plain.norm() * ((-1) ** part * torch.cos(times * torch.acos(cosine)) - 2 * part)
        (slope,) = torch.autograd.grad(value, plain)
        # Of the derivative a * w + b * x, with a and b divided by their norm.
        basis = torch.stack([own, plain.detach()], 1)
        a, b = torch.linalg.lstsq(basis, slope[:, None]).solution.flatten()
        direction = own if times == 1 else (a * own + b * plain.detach()) / torch.hypot(a, b)
        share = given[item, label] / (1 + SHARE)
        expected[item] += (share * (direction - own)).numpy()
    np.testing.assert_allclose(x.grad, expected, rtol=1e-6, atol=1e-9)


def test_center_loss() -> None:
    made = make_layer("type: 'CenterLoss' center_loss_param { num_output: 5 }", (7, 2, 2), (7,))
    made.double()
    x, centers = draw(7, 2, 2).requires_grad_(), draw(5, 4, seed=1)
    with torch.no_grad():
        made.blobs[0].copy_(centers)
    (loss,) = run(made, x, LABELS)
    labels = LABELS.int().tolist()
    rows = x.detach().flatten(1)
    distances = rows - centers[labels]
    assert float(loss.detach()) == pytest.approx(float((distances**2).sum()) / 7 / 2, rel=1e-12)
    (3 * loss).backward()
    of_centers = made.blobs[0].grad
    assert x.grad is not None and of_centers is not None
    np.testing.assert_allclose(x.grad.flatten(1), 3 * distances / 7, rtol=1e-12)
    for label in range(5):
        own = [d for d, each in zip(distances, labels, strict=True) if each == label]
        right = -sum(own, torch.zeros(4).double()) / (len(own) + 1)
        np.testing.assert_allclose(of_centers[label], right, rtol=1e-12)


def test_what_does_not_fit() -> None:
    text = "type: 'MarginInnerProduct' margin_inner_product_param { %s }"
    assert "num_output: must be given" in refused(text % "", (2, 3), (2,))
    assert "has 3 labels for 2 items" in refused(text % "num_output: 2", (2, 3), (3,))
    for settings in ("gamma: -1", "gamma: -3 power: 0.5", "gamma: 3 power: -1e6"):
        made = make_layer(text % f"num_output: 2 {settings}", (2, 3), (2,))
        with pytest.raises(CaffeError, match=r"gamma: .* is no number, or too large"):
            made(torch.ones(2, 3), torch.zeros(2))
    text = "type: 'CenterLoss' center_loss_param { %s }"
    assert "num_output: must be given" in refused(text % "", (2, 3), (2,))
    assert "has 4 labels for 2 items" in refused(text % "num_output: 2", (2, 3), (2, 2))
    assert "centres have 3 numbers, an item 6" in refused(
        text % "num_output: 2 axis: 2", (2, 2, 3), (2,)
    )


def test_weights_of_length_one() -> None:
    """They are stored so; gradients are those of inner products with them."""
    text = "type: 'InnerProduct' inner_product_param { num_output: 4 normalize: true }"
    made = make_layer(text.replace("Inner", "NormalizedInner", 1), (7, 2, 3)).double()
    x, weight, bias = draw(7, 2, 3), draw(4, 6, seed=1), draw(4, seed=2)
    with torch.no_grad():
        made.blobs[0].copy_(weight)
        made.blobs[1].copy_(bias)
    leaf = x.clone().requires_grad_()
    (top,) = run(made, leaf)
    ones = weight.numpy() / np.sqrt((weight.numpy() ** 2).sum(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(made.blobs[0].detach(), ones, rtol=1e-12)
    rows, given = x.numpy().reshape(7, 6), draw(7, 4, seed=3)
    np.testing.assert_allclose(top.detach(), rows @ ones.T + bias.numpy(), rtol=1e-10)
    top.backward(given)
    assert leaf.grad is not None
    assert made.blobs[0].grad is not None
    np.testing.assert_allclose(leaf.grad.view(7, 6), given.numpy() @ ones, rtol=1e-10)
    np.testing.assert_allclose(made.blobs[0].grad, given.numpy().T @ rows, rtol=1e-10)
    turned = text.replace("true", "true transpose: true").replace("Inner", "NormalizedInner", 1)
    assert "transpose: is not supported with normalize: true" in refused(turned, (7, 6))


def test_what_is_added_to_the_own_class() -> None:
    text = "type: 'LabelSpecificAdd' label_specific_add_param { bias: -0.5 }"
    scores = torch.linspace(-1, 1.7, 28, dtype=torch.float64).view(7, 4).requires_grad_()
    made = make_layer(text, (7, 4), (7,), tops=2)
    top, bias = run(made, scores, LABELS)
    assert torch.equal(top, scores) and bias.tolist() == [0]
    made.train()
    top, bias = run(made, scores, LABELS)
    expected = scores.detach().numpy().copy()
    for item, label in enumerate(LABELS.int().tolist()):
        if expected[item, label] > 0.5:
            expected[item, label] -= 0.5
    np.testing.assert_allclose(top.detach(), expected, rtol=1e-12)
    assert bias.tolist() == [-0.5]
    top.backward(draw(7, 4))
    assert scores.grad is not None
    assert torch.equal(scores.grad, draw(7, 4))
    with pytest.raises(CaffeError, match="label"):
        made(scores, LABELS + 1)
    assert "7 labels for scores of (6, 4)" in refused(text, (6, 4), (7,))


def test_a_bias_that_grows_with_the_iterations() -> None:
    text = (
        "type: 'LabelSpecificAdd' label_specific_add_param { bias_base: 0.25 bias_gamma: -0.125 "
        "bias_power: 1 bias_min: -0.5 bias_max: 0.125 iteration: 1 }"
    )
    made = make_layer(text, (1, 4), (1,), tops=2).train()
    found = []
    for passes in range(8):
        made.context.passes = passes
        found.append(float(made(draw(1, 4), LABELS[:1])[1]))
    assert found == [0.125, 0, -0.125, -0.25, -0.375, -0.5, -0.5, -0.5]
