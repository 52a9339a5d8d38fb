"""DetectionLoss and DetectionAccuracy against their rules, cell by cell, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.layers.harness import draw, make_layer, refused, run

IMAGES, CLASSES, HEIGHT, WIDTH = 2, 3, 5, 6
FIELD_W, FIELD_H, RATE = 20, 30, 8
MEAN, DEVIATION = [0.125, -0.25, 0.0, 0.25], [0.5, 0.25, 0.5, 0.125]
NORM = f"bbox_reg_param {{ bbox_mean: {MEAN} bbox_std: {DEVIATION} }}"
SIZES = f"cls_num: {CLASSES} field_w: {FIELD_W} field_h: {FIELD_H} downsample_rate: {RATE}"


def loss_text(more: str, other: str = "") -> str:
    return f"type: 'DetectionLoss' detection_loss_param {{ {SIZES} {more} }} {other}"


def bottoms() -> tuple[Tensor, Tensor]:
    """A map and labels: a third of the cells have an object, some are neither."""
    values = draw(IMAGES, CLASSES + 4, HEIGHT, WIDTH)
    labels = torch.zeros(IMAGES, 6, HEIGHT, WIDTH).double()
    generator = torch.Generator().manual_seed(3)
    shape = (IMAGES, HEIGHT, WIDTH)
    objects = torch.randint(0, 9, shape, generator=generator)
    labels[:, 0] = torch.where(objects < CLASSES, objects, 0).double()
    labels[:, 1:3] = 40 * torch.rand((IMAGES, 2, *shape[1:]), generator=generator).double()
    labels[:, 3:5] = 40 * torch.rand((IMAGES, 2, *shape[1:]), generator=generator).double()
    labels[:, 5] = torch.rand(shape, generator=generator).double()
    return values, labels


def limit(value: float, most: float, first: int) -> float:
    mean = sum(MEAN[first : first + 2]) / 2
    deviation = math.sqrt(math.prod(DEVIATION[first : first + 2]))
    return min(max(value, (-most - mean) / deviation), (most - mean) / deviation)


def chosen(values: np.ndarray, labels: np.ndarray, threshold: float, multiple: int) -> set:
    """The background with the highest scores: image and cell."""
    kept = set()
    for image in range(IMAGES):
        cells = [(y, x) for y in range(HEIGHT) for x in range(WIDTH)]
        free = [
            cell
            for cell in cells
            if labels[image, 0][cell] == 0 and labels[image, 5][cell] < threshold
        ]
        for label in range(1, CLASSES):
            count = max(4, multiple * sum(labels[image, 0][cell] == label for cell in cells))
            best = sorted(free, key=lambda cell: -values[image, label][cell])
            kept |= {(image, *cell) for cell in best[:count]}
    return kept


def reference(
    values: np.ndarray, labels: np.ndarray, kept: set, smooth: bool, weigh: str, multiple: int
) -> tuple[float, float, np.ndarray]:
    """The loss of classes, that of boxes, and the gradient of their sum."""
    cells = list(np.ndindex(IMAGES, HEIGHT, WIDTH))
    label = {cell: int(labels[cell[0], 0, cell[1], cell[2]]) for cell in cells}
    weights = dict.fromkeys(cells, 1.0)
    if "iou" in weigh:
        weights |= {c: labels[c[0], 5, c[1], c[2]] for c in cells if label[c]}
    if "pos" in weigh:
        objects = [c for c in cells if label[c]]
        share, number = 1 / (1 + multiple), len(objects) + len(kept)
        of_objects, of_kept = (sum(weights[c] for c in some) for some in (objects, kept))
        for c in cells:
            weights[c] *= number * (share / of_objects if label[c] else (1 - share) / of_kept)
    counted = [c for c in cells if label[c] or c in kept]
    found = [c for c in cells if label[c]]
    gradient = np.zeros_like(values)
    of_classes = of_boxes = 0.0
    for image, y, x in counted:
        scores = values[image, :CLASSES, y, x]
        share = np.exp(scores) / np.exp(scores).sum()
        weight = weights[image, y, x] / len(counted)
        of_classes -= math.log(share[label[image, y, x]]) * weight
        share[label[image, y, x]] -= 1
        gradient[image, :CLASSES, y, x] = share * weight
    for image, y, x in found:
        a, b, w, h = labels[image, 1:5, y, x]
        wanted = [
            (a - (x + 0.5) * RATE) / FIELD_W,
            (b - (y + 0.5) * RATE) / FIELD_H,
            math.log(max(w, 2) / FIELD_W),
            math.log(max(h, 2) / FIELD_H),
        ]
        for i in range(4):
            code = values[image, CLASSES + i, y, x]
            code = limit(code, 0.5 if i < 2 else math.log(2), 0 if i < 2 else 2)
            off = code - (wanted[i] - MEAN[i]) / DEVIATION[i]
            if smooth and abs(off) > 1:
                of_boxes += (abs(off) - 0.5) / (4 * len(found))
                off = math.copysign(1, off)
            else:
                of_boxes += off * off / 2 / (4 * len(found))
            gradient[image, CLASSES + i, y, x] = 0.5 * off / (4 * len(found))
    return of_classes, 0.5 * of_boxes, gradient


@pytest.mark.parametrize("weigh", ["", "iou_weighted: true", "pos_neg_weighted: true", "both"])
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("mode", ["bootstrap", "all"])
def test_detection_loss(mode: str, smooth: bool, weigh: str) -> None:
    values, labels = bottoms()
    fields = "iou_weighted: true pos_neg_weighted: true" if weigh == "both" else weigh
    text = loss_text(
        f"lambda: 0.5 bg_threshold: 0.6 bg_multiple: 1 sample_mode: '{mode}' "
        f"bb_smooth: {str(smooth).lower()} {fields}",
        NORM,
    )
    if mode == "all":
        kept = {
            (i, y, x)
            for i, y, x in np.ndindex(IMAGES, HEIGHT, WIDTH)
            if labels[i, 0, y, x] == 0 and labels[i, 5, y, x] < 0.6
        }
    else:
        kept = chosen(values.numpy(), labels.numpy(), 0.6, 1)
        assert 8 < len(kept) < 30
    expected = reference(values.numpy(), labels.numpy(), kept, smooth, fields, 1)
    leaf = values.clone().requires_grad_()
    (top,) = run(make_layer(text, tuple(values.shape), tuple(labels.shape)), leaf, labels)
    np.testing.assert_allclose(
        top.detach().flatten(), [expected[0] + expected[1], expected[1]], rtol=1e-6
    )
    # The second number is of no account in backward.
    (top * torch.tensor([1.0, 7.0])).sum().backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad, expected[2], rtol=1e-6, atol=1e-12)


def test_gradient() -> None:
    """Where nothing is limited."""
    values, labels = bottoms()
    values[:, CLASSES:] *= 0.05
    made = make_layer(loss_text("sample_mode: 'all'"), tuple(values.shape), tuple(labels.shape))
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: made(x, labels)[..., 0], (values,))


@pytest.mark.parametrize(("mode", "most"), [("random", 8), ("mixture", 16)])
def test_background_that_is_drawn(mode: str, most: int) -> None:
    """Where there is no object, every cell of background counts the same: -log p each."""
    text = loss_text(f"sample_mode: '{mode}' bg_threshold: 0.6")
    values, labels = bottoms()
    labels[:, 0] = 0
    made = make_layer(text, tuple(values.shape), tuple(labels.shape))
    seen = set()
    for _ in range(3):
        leaf = values.clone().requires_grad_()
        made(leaf, labels)[..., 0].sum().backward()
        assert leaf.grad is not None
        used = leaf.grad[:, 0] != 0
        seen.add(tuple(used.flatten().tolist()))
        assert not used[labels[:, 5] >= 0.6].any()
        counts = used.flatten(1).sum(1)
        assert counts.min() > 0 and counts.max() <= most
        share = torch.softmax(values[:, :CLASSES], 1)[:, 0]
        torch.testing.assert_close(leaf.grad[:, 0][used], ((share - 1) / used.sum())[used])
    assert len(seen) > 1


def test_ignored_labels_and_objects_of_any_class() -> None:
    values, labels = bottoms()
    shapes = (tuple(values.shape), tuple(labels.shape))
    made = make_layer(loss_text("sample_mode: 'all'", "loss_param { ignore_label: 2 }"), *shapes)
    leaf = values.clone().requires_grad_()
    made(leaf, labels)[..., 0].sum().backward()
    assert leaf.grad is not None
    used = leaf.grad.abs().sum(1) > 0
    assert not used[labels[:, 0] == 2].any() and used[labels[:, 0] == 1].all()
    two = values[:, 1:].clone()
    text = loss_text("sample_mode: 'all'").replace("cls_num: 3", "cls_num: 2")
    any_class = make_layer(text.replace("'all'", "'all' objectness: true"), two.shape, shapes[1])
    same = labels.clone()
    same[:, 0] = same[:, 0].clamp(max=1)
    torch.testing.assert_close(
        any_class(two, labels), make_layer(text, two.shape, shapes[1])(two, same)
    )


def test_nothing_to_count() -> None:
    values, labels = bottoms()
    labels[:, 0], labels[:, 5] = 0, 1
    shapes = (tuple(values.shape), tuple(labels.shape))
    made = make_layer(loss_text("pos_neg_weighted: true"), *shapes)
    leaf = values.clone().requires_grad_()
    top = made(leaf, labels)
    assert top.flatten().tolist() == [0, 0]
    top.sum().backward()
    assert leaf.grad is not None and not leaf.grad.any()
    accuracy = make_layer(accuracy_text(), *shapes, tops=2)
    assert torch.cat([top.flatten() for top in accuracy(values, labels)]).tolist() == [-1, -1, -1]


def accuracy_text(more: str = "") -> str:
    return f"type: 'DetectionAccuracy' detection_accuracy_param {{ {SIZES} {more} }} {NORM}"


@pytest.mark.parametrize("top_k", [1, 2])
def test_detection_accuracy(top_k: int) -> None:
    values, labels = bottoms()
    values[0, 1, :2] = values[0, 2, :2]  # of equal scores, the last class comes first
    right, right_found, counted, found, shares = 0, 0, 0, 0, 0.0
    v, t = values.numpy(), labels.numpy()
    for image, y, x in np.ndindex(IMAGES, HEIGHT, WIDTH):
        label = int(t[image, 0, y, x])
        if label == 0 and t[image, 5, y, x] >= 0.6:
            continue
        counted += 1
        best = sorted(range(CLASSES), key=lambda k: (-v[image, k, y, x], -k))
        hit = label in best[:top_k]
        right += hit
        if label == 0:
            continue
        found, right_found = found + 1, right_found + hit
        codes = [v[image, CLASSES + i, y, x] * DEVIATION[i] + MEAN[i] for i in range(4)]
        a, b = (min(max(code, -0.25), 0.25) for code in codes[:2])
        c, d = (min(max(code, -math.log(2)), math.log(2)) for code in codes[2:])
        mine = (a * FIELD_W + (x + 0.5) * RATE, b * FIELD_H + (y + 0.5) * RATE)
        sides = FIELD_W * math.exp(c), FIELD_H * math.exp(d)
        theirs, wanted = t[image, 1:3, y, x], t[image, 3:5, y, x]
        span = [
            min(mine[i] + sides[i] / 2, theirs[i] + wanted[i] / 2)
            - max(mine[i] - sides[i] / 2, theirs[i] - wanted[i] / 2)
            for i in range(2)
        ]
        common = max(span[0], 0) * max(span[1], 0)
        shares += common / (math.prod(sides) + math.prod(wanted) - common)
    made = make_layer(accuracy_text(f"top_k: {top_k} bg_threshold: 0.6"), v.shape, t.shape, tops=2)
    accuracy, boxes = run(made, values, labels)
    np.testing.assert_allclose(
        accuracy.flatten(), [right / counted, right_found / found], rtol=1e-12
    )
    np.testing.assert_allclose(float(boxes), shares / found, rtol=1e-9)


def test_what_does_not_fit() -> None:
    good = (1, 7, 2, 2), (1, 6, 2, 2)
    assert "N x 7 x H x W and N x 6 x H x W" in refused(loss_text(""), (1, 8, 2, 2), good[1])
    assert "not (1, 7, 2, 2) and (1, 6, 2, 3)" in refused(loss_text(""), good[0], (1, 6, 2, 3))
    assert "sample_mode: is 'x'; known: random" in refused(loss_text("sample_mode: 'x'"), *good)
    assert "coord_num: 4 would be right" in refused(loss_text("coord_num: 5"), *good)
    assert "field_whr: must be positive" in refused(loss_text("field_whr: 0"), *good)
    assert "cls_num: 2 would be right" in refused(loss_text("objectness: true"), *good)
    assert "top_k: 1 to cls_num, 3" in refused(accuracy_text("top_k: 4"), *good)
    norm = "bbox_reg_param { bbox_mean: [0, 0, 0, 0] bbox_std: [1, 1, 0, 1] }"
    assert "bbox_std: must be positive" in refused(loss_text("", norm), *good)
    values, labels = bottoms()
    labels[0, 0, 0, 0] = 3
    with pytest.raises(Exception, match="label 3 is out of range; 0 to 2 would be right"):
        make_layer(loss_text(""), tuple(values.shape), tuple(labels.shape))(values, labels)
