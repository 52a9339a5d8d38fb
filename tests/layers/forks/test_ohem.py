"""Hard example mining against loops over the regions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.layers.harness import draw, make_layer, refused, run


@pytest.mark.parametrize("ignored", [None, 1])
@pytest.mark.parametrize("shape", [(6, 4), (2, 4, 3, 1)])
def test_softmax_with_a_loss_for_each_label(shape: tuple[int, ...], ignored: int | None) -> None:
    labels_shape = (shape[0], 1, *shape[2:])
    settings = "" if ignored is None else f"loss_param {{ ignore_label: {ignored} }}"
    layer = make_layer(f"type: 'SoftmaxWithLossOHEM' {settings}", shape, labels_shape, tops=3)
    scores = draw(*shape).requires_grad_()
    labels = torch.arange(6).remainder(4).double().view(labels_shape)
    loss, probabilities, losses = run(layer, scores, labels)

    values = scores.detach().numpy()
    powers = np.exp(values)
    expected = powers / powers.sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12)
    whole = labels.numpy().astype(int)
    chosen = np.take_along_axis(expected.reshape(*shape), whole.reshape(labels_shape), 1)
    costs = -np.log(chosen) * (whole.reshape(chosen.shape) != ignored)
    np.testing.assert_allclose(losses, costs.reshape(labels_shape), rtol=1e-12, atol=1e-15)
    counted = (whole != ignored).sum()
    np.testing.assert_allclose(loss.detach(), costs.sum() / counted, rtol=1e-12)
    assert not losses.requires_grad
    assert torch.autograd.gradcheck(lambda x: layer(x, labels)[0], scores)


def test_no_probability_counts_as_less_than_the_least_float() -> None:
    layer = make_layer("type: 'SoftmaxWithLossOHEM'", (1, 2), (1,), tops=3)
    losses = run(layer, torch.tensor([[0.0, 500.0]]), torch.tensor([0.0]))[2]
    assert losses.tolist() == pytest.approx([87.33654])


def annotator(most: int) -> str:
    return f"type: 'BoxAnnotatorOHEM' box_annotator_ohem_param {{ roi_per_img: {most} }}"


@pytest.mark.parametrize("places", [(), (1, 1), (2, 3)])
@pytest.mark.parametrize("most", [1, 2, 100])
def test_the_regions_with_the_largest_losses_stay(most: int, places: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    spread = places or (1, 1)
    regions = torch.rand(7, 5, *spread, generator=generator).double()
    regions[:, 0] = torch.randint(0, 3, (7, *spread), generator=generator)
    # Few different losses, so that ties are common.
    losses = torch.randint(0, 4, (7, 1, *spread), generator=generator).double()
    labels = torch.randint(0, 21, (7, 1, *spread), generator=generator).double()
    weights = torch.rand(7, 8, *spread, generator=generator).double()
    bottoms = [b.view(7, -1, *places) for b in (regions, losses, labels, weights)]
    layer = make_layer(annotator(most), *[tuple(b.shape) for b in bottoms], tops=2)
    found_labels, found_weights = run(layer, *bottoms)

    expected_labels = np.full(labels.shape, -1.0)
    expected_weights = np.zeros(weights.shape)
    flat = losses.flatten().tolist()
    left = [most] * 3
    for index in sorted(range(len(flat)), key=lambda i: -flat[i]):
        r, y, x = np.unravel_index(index, (7, *spread))
        image = int(regions[r, 0, y, x])
        if left[image]:
            left[image] -= 1
            expected_labels[r, 0, y, x] = labels[r, 0, y, x]
            expected_weights[r, :, y, x] = weights[r, :, y, x]
    np.testing.assert_array_equal(found_labels, expected_labels)
    np.testing.assert_array_equal(found_weights, expected_weights)


def test_what_the_annotator_refuses() -> None:
    shapes = [(7, 5), (7, 1), (7, 1), (7, 8)]
    wrong = [(7, 4), *shapes[1:]]
    message = "the regions are 7 x 4 x 1 x 1; 7 x 5 x 1 x 1 would be right"
    assert refused(annotator(2), *wrong, tops=2).endswith(message)
    assert "roi_per_img: must be given" in refused(annotator(0), *shapes, tops=2)
