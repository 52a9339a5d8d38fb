"""Losses on labels against recorded cases, slow float64 references and gradcheck."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.layers import Layer
from caffe_dns.proto.blobs import array_to_blob
from tests.layers.build import make_layer
from tests.layers.harness import refused
from tests.oracle import run_layer_case

CASES = [
    "hinge",
    "hinge_l2",
    "infogain",
    "multinomial",
    "sigmoidce",
    "sigmoidce_ignore",
    "softmaxloss",
    "softmaxloss_batch",
    "softmaxloss_full",
    "softmaxloss_ignore",
    "softmaxloss_none",
    "softmaxloss_spatial",
]
MODES = ["VALID", "FULL", "BATCH_SIZE", "NONE", "PRE_FIXED pre_fixed_normalizer: 2.5"]


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    run_layer_case(name)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).double() * 2


def draw_labels(classes: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, classes, shape, generator=generator).double()


def divisor(mode: str, outer: int, places: int, valid: int) -> float:
    return max(
        1.0,
        {
            "VALID": valid,
            "FULL": places,
            "BATCH_SIZE": outer,
            "NONE": 1,
            "PRE_FIXED pre_fixed_normalizer: 2.5": 2.5,
        }[mode],
    )


def slow_loss(
    scores: np.ndarray,
    labels: np.ndarray,
    axis: int,
    ignore: int | None,
    mode: str,
    cost: Callable[[np.ndarray, int], float],
) -> float:
    """The sum of `cost(probabilities, label)` over all places, normalised."""
    rows = np.moveaxis(scores, axis, -1).reshape(-1, scores.shape[axis])
    total, valid = 0.0, 0
    for row, label in zip(rows, labels.reshape(-1), strict=True):
        if int(label) == ignore:
            continue
        powers = np.exp(row - row.max())
        total += cost(powers / powers.sum(), int(label))
        valid += 1
    return total / divisor(mode, math.prod(scores.shape[:axis]), len(rows), valid)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax_loss_along_any_axis(axis: int, mode: str) -> None:
    text = (
        f'type: "SoftmaxWithLoss" softmax_param {{ axis: {axis} }} '
        f"loss_param {{ normalization: {mode} ignore_label: 2 }}"
    )
    scores = draw(3, 4, 5, 3)
    places = [extent for index, extent in enumerate(scores.shape) if index != axis % 4]
    # The first axis of scores and labels has to agree, whatever the labels' shape is beyond it.
    labels = draw_labels(3, *places).reshape(3, -1)
    layer = make_layer(text, scores.shape, labels.shape)
    expected = slow_loss(
        scores.numpy(), labels.numpy(), axis % 4, 2, mode, lambda p, label: -math.log(p[label])
    )
    loss = layer(scores, labels)
    assert loss.shape == ()
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: layer(x, labels), scores.requires_grad_())


@pytest.mark.parametrize("ignore", [None, 1])
def test_softmax_loss_by_the_frequency_of_labels(ignore: int | None) -> None:
    """SegNet's factors of classes; what is divided by counts labels, not factors."""
    weights = [0.5, 2.0, 1.5]
    text = (
        'type: "SoftmaxWithLoss" loss_param { weight_by_label_freqs: true '
        + " ".join(f"class_weighting: {weight}" for weight in weights)
        + (f" ignore_label: {ignore}" if ignore is not None else "")
        + " }"
    )
    scores, labels = draw(2, 3, 4, 5), draw_labels(3, 2, 4, 5)
    layer = make_layer(text, scores.shape, labels.shape)
    expected = slow_loss(
        scores.numpy(),
        labels.numpy(),
        1,
        ignore,
        "VALID",
        lambda p, label: -weights[label] * math.log(p[label]),
    )
    np.testing.assert_allclose(layer(scores, labels), expected, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: layer(x, labels), scores.requires_grad_())
    text = text.replace("class_weighting: 1.5", "")
    assert "class_weighting: has 2 values for 3 classes" in refused(text, (2, 3), (2,))
    text = 'type: "SoftmaxWithLoss" loss_param { class_weighting: 1 }'
    assert "needs weight_by_label_freqs" in refused(text, (2, 3), (2,))


def test_softmax_loss_keeps_the_memory_format_of_scores() -> None:
    scores, labels = draw(2, 3, 4, 5), draw_labels(3, 2, 4, 5)
    layer = make_layer('type: "SoftmaxWithLoss"', scores.shape, labels.shape)
    last = scores.clone(memory_format=torch.channels_last).requires_grad_()
    loss = layer(last, labels)
    torch.testing.assert_close(loss, layer(scores, labels))
    loss.backward()
    assert last.grad is not None
    assert last.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("normalize", "mode"), [("true", "VALID"), ("false", "BATCH_SIZE")])
def test_legacy_normalize(normalize: str, mode: str) -> None:
    shapes = (2, 3, 4), (2, 4)
    legacy = make_layer(
        f'type: "SoftmaxWithLoss" loss_param {{ normalize: {normalize} ignore_label: 1 }}', *shapes
    )
    now = make_layer(
        f'type: "SoftmaxWithLoss" loss_param {{ normalization: {mode} ignore_label: 1 }}', *shapes
    )
    both = make_layer(
        f'type: "SoftmaxWithLoss" loss_param {{ normalization: NONE normalize: {normalize} }}',
        *shapes,
    )
    scores, labels = draw(2, 3, 4), draw_labels(3, 2, 4)
    assert legacy(scores, labels) == now(scores, labels)
    cost = slow_loss(
        scores.numpy(), labels.numpy(), 1, None, "NONE", lambda p, label: -math.log(p[label])
    )
    np.testing.assert_allclose(both(scores, labels), cost)


def test_softmax_loss_is_clamped_and_its_gradient_is_not() -> None:
    layer = make_layer('type: "SoftmaxWithLoss"', (2, 3), (2,))
    scores = torch.tensor([[200.0, 0.0, 1.0], [0.0, 90.0, 0.0]], requires_grad=True)
    loss = layer(scores, torch.tensor([1.0, 0.0]))
    np.testing.assert_allclose(loss.item(), 87.3365, rtol=1e-6)
    loss.backward()
    assert scores.grad is not None
    np.testing.assert_allclose(scores.grad, [[0.5, -0.5, 0], [-0.5, 0.5, 0]], atol=1e-7)


def test_softmax_loss_with_nothing_to_count() -> None:
    layer = make_layer('type: "SoftmaxWithLoss" loss_param { ignore_label: 255 }', (2, 3), (2,))
    scores = draw(2, 3).requires_grad_()
    loss = layer(scores, torch.full((2,), 255.0))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_softmax_loss_gives_probabilities_without_a_gradient() -> None:
    text = 'type: "SoftmaxWithLoss" top: "loss" top: "prob" softmax_param { axis: 2 }'
    layer = make_layer(text, (2, 3, 4), (2, 3))
    assert layer.reshape([(2, 3, 4), (2, 3)]) == [(), (2, 3, 4)]
    scores = draw(2, 3, 4).requires_grad_()
    loss, probabilities = layer(scores, draw_labels(4, 2, 3))
    assert loss.requires_grad
    assert not probabilities.requires_grad
    torch.testing.assert_close(probabilities, scores.detach().softmax(2))


@pytest.mark.parametrize("mode", MODES)
def test_sigmoid_loss(mode: str) -> None:
    text = (
        f'type: "SigmoidCrossEntropyLoss" loss_param {{ normalization: {mode} ignore_label: -1 }}'
    )
    scores, targets = draw(3, 2, 4), draw(3, 8).sigmoid()
    # Cut to an integer, -1.75 is the label to ignore and -0.25 is not.
    targets[0, :3] = torch.tensor([-1, -1.75, -0.25])
    layer = make_layer(text, scores.shape, targets.shape)
    chances = 1 / (1 + np.exp(-scores.numpy().reshape(3, 8)))
    wanted = targets.numpy()
    costs = -wanted * np.log(chances) - (1 - wanted) * np.log(1 - chances)
    costs[0, :2] = 0
    expected = costs.sum() / divisor(mode, 3, 24, 22)
    np.testing.assert_allclose(layer(scores, targets), expected, rtol=1e-10)
    assert torch.autograd.gradcheck(lambda x: layer(x, targets), scores.requires_grad_())


def test_sigmoid_loss_averages_over_the_batch_by_default() -> None:
    scores, targets = torch.zeros(3, 5, requires_grad=True), torch.ones(3, 5, requires_grad=True)
    layer = make_layer('type: "SigmoidCrossEntropyLoss"', scores.shape, targets.shape)
    loss = layer(scores, targets)
    np.testing.assert_allclose(loss.item(), 5 * math.log(2), rtol=1e-6)
    loss.backward()
    assert scores.grad is not None
    np.testing.assert_allclose(scores.grad, np.full((3, 5), -1 / 6), rtol=1e-6)
    assert targets.grad is None


def infogain_layer(
    tmp_path: Path, matrix: Tensor, settings: str, *shapes: tuple[int, ...]
) -> Layer:
    source = tmp_path / "matrix.binaryproto"
    source.write_bytes(array_to_blob(matrix.float().numpy()).SerializeToString())
    text = (
        f'type: "InfogainLoss" infogain_loss_param {{ source: "{source}" axis: 2 }} '
        f"loss_param {{ {settings} }}"
    )
    return make_layer(text, *shapes)


@pytest.mark.parametrize("mode", MODES)
def test_infogain_from_file_and_from_bottom(tmp_path: Path, mode: str) -> None:
    scores, labels = draw(2, 3, 4, 2), draw_labels(4, 2, 3, 2)
    matrix = draw(1, 1, 4, 4).float().double()
    shapes = scores.shape, labels.shape
    settings = f"normalization: {mode} ignore_label: 3"
    stored = infogain_layer(tmp_path, matrix, settings, *shapes).double()
    given = make_layer(
        f'type: "InfogainLoss" infogain_loss_param {{ axis: 2 }} loss_param {{ {settings} }}',
        *shapes,
        matrix.shape,
    )
    rows = matrix[0, 0].numpy()
    expected = slow_loss(
        scores.numpy(),
        labels.numpy(),
        2,
        3,
        mode,
        lambda p, label: -(rows[label] * np.log(p)).sum(),
    )
    np.testing.assert_allclose(stored(scores, labels), expected, rtol=1e-10)
    np.testing.assert_allclose(given(scores, labels, matrix), expected, rtol=1e-10)
    matrix.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: given(x, labels, matrix), scores.requires_grad_())
    assert matrix.grad is None


def test_infogain_clamps_small_probabilities() -> None:
    text = 'type: "InfogainLoss" top: "loss" top: "prob"'
    layer = make_layer(text, (1, 2), (1,), (2, 2))
    scores = torch.tensor([[60.0, 0.0]], requires_grad=True)
    loss, _ = layer(scores, torch.ones(1), torch.tensor([[0.0, 0.0], [0.25, 2.0]]))
    np.testing.assert_allclose(loss.item(), -2 * math.log(1e-20), rtol=1e-6)
    loss.backward()
    assert scores.grad is not None
    # p * (0.25 + 2) - H, as if nothing had been clamped.
    np.testing.assert_allclose(scores.grad, [[2.0, -2.0]], rtol=1e-6)


def test_multinomial_loss_clamps_with_its_gradient() -> None:
    layer = make_layer('type: "MultinomialLogisticLoss"', (2, 3), (2, 1, 1, 1))
    chances = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]], requires_grad=True)
    labels = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    loss = layer(chances, labels)
    np.testing.assert_allclose(loss.item(), (math.log(4) - math.log(1e-20)) / 2, rtol=1e-6)
    loss.backward()
    assert chances.grad is not None
    np.testing.assert_allclose(chances.grad, [[0.0, -2.0, 0.0], [-5e19, 0.0, 0.0]], rtol=1e-6)
    exact = draw(2, 3).softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, labels), exact)


@pytest.mark.parametrize("kind", ["MultinomialLogisticLoss", "HingeLoss"])
def test_one_label_losses_of_one_class(kind: str) -> None:
    scores, labels = torch.full((3,), 0.25), torch.zeros(3)
    loss = make_layer(f'type: "{kind}"', (3,), (3,))(scores, labels)
    expected = {"MultinomialLogisticLoss": math.log(4), "HingeLoss": 0.75}[kind]
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-6)


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_hinge_loss(norm: str) -> None:
    scores, labels = draw(3, 2, 2), draw_labels(4, 3)
    text = f'type: "HingeLoss" hinge_loss_param {{ norm: {norm} }}'
    layer = make_layer(text, scores.shape, labels.shape)
    expected = 0.0
    for row, label in zip(scores.numpy().reshape(3, 4), labels, strict=True):
        for index, score in enumerate(row):
            cost = max(0.0, 1 - score if index == int(label) else 1 + score)
            expected += cost * cost if norm == "L2" else cost
    np.testing.assert_allclose(layer(scores, labels), expected / 3, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: layer(x, labels), scores.requires_grad_())


@pytest.mark.parametrize(
    "name", ["SoftmaxWithLoss", "InfogainLoss", "MultinomialLogisticLoss", "HingeLoss"]
)
def test_a_label_that_is_no_class_is_named(name: str) -> None:
    shapes = [(2, 3), (2,), (3, 3)][: 3 if name == "InfogainLoss" else 2]
    layer = make_layer(f'type: "{name}"', *shapes)
    bottoms = [torch.ones(shape) for shape in shapes]
    bottoms[1] = torch.tensor([0.0, 3.0])
    with pytest.raises(CaffeError, match="layer 'layer': bottom: label 3 is out of range; 0 to 2"):
        layer(*bottoms)


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        (
            'type: "SoftmaxWithLoss"',
            [(2, 3, 4), (2, 3)],
            "8 predictions need as many labels, not 6",
        ),
        ('type: "SoftmaxWithLoss"', [(2, 3), (3,)], "differ in their first axis"),
        (
            'type: "SoftmaxWithLoss" softmax_param { axis: 2 }',
            [(2, 3), (2,)],
            "softmax_param.axis: axis 2 is out of range",
        ),
        ('type: "SigmoidCrossEntropyLoss"', [(2, 3), (2,)], "6 scores need as many targets, not 2"),
        ('type: "HingeLoss"', [(2, 3), (2, 2)], "2 examples need as many labels, not 4"),
        ('type: "MultinomialLogisticLoss"', [(2, 3), (2, 2)], "2 examples need as many labels"),
        ('type: "InfogainLoss"', [(2, 3), (2,)], "infogain_loss_param.source: must name the file"),
        ('type: "InfogainLoss"', [(2, 3), (2,), (2, 3)], "has 6 elements; 3 classes need 3 x 3"),
        (
            'type: "InfogainLoss" loss_param { normalize: true }',
            [(2, 3), (2,), (3, 3)],
            "loss_param.normalize: is out of use here",
        ),
        (
            'type: "InfogainLoss" infogain_loss_param { source: "/no/such" }',
            [(2, 3), (2,)],
            "/no/such: layer 'layer'",
        ),
    ],
)
def test_wrong_definitions_are_named(
    text: str, shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(CaffeError, match=message):
        make_layer(text, *shapes)


def test_a_matrix_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match=r"infogain_loss_param.source: the infogain matrix has 9"):
        infogain_layer(tmp_path, draw(3, 3), "", (2, 3, 4), (2, 3))
