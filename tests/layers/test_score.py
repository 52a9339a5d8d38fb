"""Accuracy and ArgMax against loops that count and sort entry by entry."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from tests.layers.harness import draw, make_layer, refused, run
from tests.oracle import run_layer_case

GOLDEN = [
    "accuracy",
    "accuracy_ignore",
    "accuracy_perclass",
    "accuracy_top2",
    "argmax",
    "argmax_axis",
    "argmax_val",
]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_case(name: str) -> None:
    run_layer_case(name)


def count_right(
    scores: np.ndarray, labels: np.ndarray, top_k: int, ignored: int | None
) -> tuple[float, list[float]]:
    """Accuracy over all labels and for each class; scores are labels x classes."""
    right, total = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for row, label in zip(scores, labels, strict=True):
        if label == ignored:
            continue
        total[label] += 1
        better_or_equal = sum(score >= row[label] for score in row) - 1
        right[label] += better_or_equal < top_k
    per_class = [r / t if t else 0.0 for r, t in zip(right, total, strict=True)]
    return (right.sum() / total.sum() if total.sum() else 0.0), per_class


@pytest.mark.parametrize("top_k", [0, 1, 3])
@pytest.mark.parametrize("ignored", [None, 2, -1, 255])
@pytest.mark.parametrize("axis", [1, -1, 0])
def test_accuracy(top_k: int, ignored: int | None, axis: int) -> None:
    shape = {1: (4, 5, 3, 2), -1: (4, 3, 2, 5), 0: (5, 4, 3, 2)}[axis]
    # Whole numbers, so that there are ties.
    scores = draw(*shape).mul(2).round()
    labels = draw(24, seed=1).mul(3).abs().floor().clamp(max=4)
    if ignored is not None:
        labels[::3] = ignored
    settings = f"axis: {axis} top_k: {top_k}"
    if ignored is not None:
        settings += f" ignore_label: {ignored}"
    definition = f"type: 'Accuracy' accuracy_param {{ {settings} }}"
    layer = make_layer(definition, shape, (24,), tops=2)
    tops = run(layer, scores, labels)
    rows = np.moveaxis(scores.numpy(), axis, -1).reshape(-1, 5)
    total, per_class = count_right(rows, labels.numpy().astype(int), top_k, ignored)
    assert tops[0].item() == pytest.approx(total)
    assert tops[1].tolist() == pytest.approx(per_class)


def test_accuracy_counts_a_tie_against_the_label() -> None:
    layer = make_layer("type: 'Accuracy'", (2, 3), (2,))
    scores = torch.tensor([[1.0, 1.0, 0.0], [1.0, 2.0, 0.0]])
    assert run(layer, scores, torch.tensor([0.0, 1.0]))[0].item() == 0.5


def test_accuracy_where_the_lowest_is_the_best() -> None:
    scores, labels = draw(6, 4), torch.tensor([0, 1, 2, 3, 1, 0]).double()
    for top_k in (1, 2):
        settings = f"min_is_better: true top_k: {top_k}"
        made = make_layer(f"type: 'Accuracy' accuracy_param {{ {settings} }}", (6, 4), (6,))
        expected, _ = count_right(-scores.numpy(), labels.long().numpy(), top_k, None)
        assert float(run(made, scores, labels)[0]) == expected


def test_accuracy_when_every_label_is_ignored() -> None:
    layer = make_layer("type: 'Accuracy' accuracy_param { ignore_label: 7 }", (2, 3), (2,), tops=2)
    total, per_class = run(layer, draw(2, 3), torch.tensor([7.0, 7.0]).double())
    assert total.item() == 0.0 and per_class.tolist() == [0.0] * 3


def test_accuracy_has_no_gradient() -> None:
    layer = make_layer("type: 'Accuracy'", (2, 3), (2,))
    assert not run(layer, draw(2, 3).requires_grad_(), torch.zeros(2))[0].requires_grad


@pytest.mark.parametrize("label", [-1.0, 3.0])
def test_label_out_of_range(label: float) -> None:
    layer = make_layer("type: 'Accuracy'", (2, 3), (2,))
    with pytest.raises(CaffeError, match=f"layer 'layer': bottom: label {label:.0f} is out of"):
        layer(draw(2, 3), torch.tensor([0.0, label]))


@pytest.mark.parametrize(
    ("settings", "shapes", "part"),
    [
        ("top_k: 4", [(2, 3), (2,)], "accuracy_param.top_k: is 4, more than the 3 classes"),
        ("axis: 2", [(2, 3), (2,)], "accuracy_param.axis: axis 2"),
        ("", [(2, 3, 4), (2,)], "labels of shape (2,) do not fit scores of shape (2, 3, 4)"),
        ("", [(2, 3)], "takes 2 bottom"),
    ],
)
def test_wrong_accuracy(settings: str, shapes: list[tuple[int, ...]], part: str) -> None:
    assert part in refused(f"type: 'Accuracy' accuracy_param {{ {settings} }}", *shapes)


def best(row: np.ndarray, top_k: int) -> list[tuple[float, int]]:
    """The largest (value, place) pairs, as pairs compare."""
    return sorted(((value, place) for place, value in enumerate(row)), reverse=True)[:top_k]


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("shape", [(3, 6), (2, 3, 4), (2, 3, 2, 2), (2, 3, 1, 2, 1)])
def test_argmax_of_whole_items(top_k: int, values: bool, shape: tuple[int, ...]) -> None:
    settings = f"top_k: {top_k} out_max_val: {str(values).lower()}"
    layer = make_layer(f"type: 'ArgMax' argmax_param {{ {settings} }}", shape)
    bottom = draw(*shape).round()
    top = run(layer, bottom)[0]
    assert top.shape == (shape[0], 1 + values, top_k, *[1] * (len(shape) - 3))
    for item, result in zip(bottom.numpy(), top.numpy(), strict=True):
        pairs = best(item.ravel(), top_k)
        expected = [place for _, place in pairs] + ([value for value, _ in pairs] if values else [])
        assert result.ravel().tolist() == expected


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_argmax_along_an_axis(values: bool, axis: int) -> None:
    settings = f"top_k: 2 axis: {axis} out_max_val: {str(values).lower()}"
    layer = make_layer(f"type: 'ArgMax' argmax_param {{ {settings} }}", (3, 4, 5))
    bottom = draw(3, 4, 5).round()
    top = np.moveaxis(run(layer, bottom)[0].numpy(), axis, -1).reshape(-1, 2)
    rows = np.moveaxis(bottom.numpy(), axis, -1)
    for row, result in zip(rows.reshape(-1, rows.shape[-1]), top, strict=True):
        assert result.tolist() == [pair[0 if values else 1] for pair in best(row, 2)]


@pytest.mark.parametrize(
    ("settings", "shape", "part"),
    [
        ("top_k: 0", (2, 3), "argmax_param.top_k: is 0; 1 to 3"),
        ("top_k: 13", (2, 3, 4), "argmax_param.top_k: is 13; 1 to 12"),
        ("top_k: 4 axis: 1", (2, 3, 4), "argmax_param.top_k: is 4; 1 to 3"),
        ("axis: -4", (2, 3, 4), "argmax_param.axis: axis -4"),
        ("", (), "at least 1 axis"),
    ],
)
def test_wrong_argmax(settings: str, shape: tuple[int, ...], part: str) -> None:
    assert part in refused(f"type: 'ArgMax' argmax_param {{ {settings} }}", shape)
