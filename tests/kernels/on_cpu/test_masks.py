"""The renewal of masks by compiled code, against the rules in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("numba")

from caffe_dns.kernels.masked import Masked
from caffe_dns.kernels.on_cpu import masks as kernel_module
from caffe_dns.surgery.masked_layers import find_masked_layers
from caffe_dns.surgery.renewal import Renewal
from tests.kernels import masks as masks_module
from tests.kernels.masks import Masks
from tests.surgery.test_surgeon import DATA, conv, ip, make_surgeon
from tests.test_mask_rules import deviation_mask

BLOCK = kernel_module.BLOCK
SHAPES = [(7, 11), (BLOCK,), (BLOCK + 1,), (2, 3, 5, 4), (1,), (3, BLOCK - 1), (9, 4)]
SETTINGS = [0.3, 0.6, 1.0, 0.0, 0.5, 1.3, -0.5]


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return masks_module.draw(shape, seed, "cpu")


def renewed(masks: Masks) -> list[Tensor]:
    """Renew twice, with other weights, and compare; the masks."""
    kernel = kernel_module.MaskKernel(masks.listed())
    masks.check(kernel, masks.layers)
    for weight in masks.weights:
        weight += 0.25 * draw(tuple(weight.shape), 20)
    masks.check(kernel, masks.layers)
    return masks.masks


@pytest.mark.parametrize("least", [1, 128])
@pytest.mark.parametrize("shift", [0.0, 20.0])
def test_by_deviation(shift: float, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "LEAST_BLOCKS", least)
    weights = [draw(shape, seed) + shift for seed, shape in enumerate(SHAPES)]
    renewed(Masks(weights, SETTINGS, [None] * len(SHAPES)))


@pytest.mark.parametrize("least", [1, 128])
def test_by_magnitude(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "LEAST_BLOCKS", least)
    weights = [draw(shape, seed) for seed, shape in enumerate(SHAPES)]
    weights[2][7] = 0.0  # pruned even where the threshold comes out negative, which is 0 then
    moments: list[Tensor | None] = [
        torch.tensor([0.5 + 0.1 * index, 0.25]) for index in range(len(SHAPES))
    ]
    masks = Masks(weights, [0.3, 0.6, -5.0, 0.0, 0.5, 1.3, 0.4], moments)
    renewed(masks)
    for pair in moments:
        assert pair is not None
        pair.mul_(0.75)  # moments that are measured anew count at once
    renewed(masks)


def test_whatever_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "LEAST_BLOCKS", 2)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(renewed(Masks([draw((5 * BLOCK + 3,), 1)], [0.7], [None]))[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_only_layers_that_are_due() -> None:
    masks = Masks([draw((3, 5), seed) for seed in range(4)], [0.6] * 4, [None] * 4, [0, 1, 1, 2])
    kernel = kernel_module.MaskKernel(masks.listed())
    for due in ([1], [0, 2], []):
        kernel.choose(due)
        masks.check(kernel, due)
        for weight in masks.weights:
            weight += 0.5 * draw((3, 5), 30 + len(due))


def test_weights_in_another_order_than_their_masks() -> None:
    weights = [
        draw((4, 3, 5, 2), 1).contiguous(memory_format=torch.channels_last),
        draw((6, 4), 4).t(),
        draw((4, 3, 5, 2), 5).contiguous(memory_format=torch.channels_last),
    ]
    masks = Masks(weights, [0.6] * 3, [None, None, torch.tensor([0.5, 0.25])])
    for index in (0, 1):
        masks.masks[index] = masks.masks[index].contiguous()
    renewed(masks)


def test_a_weight_that_is_a_new_tensor_each_time() -> None:
    stored = draw((4, 3, 5, 2), 1).contiguous(memory_format=torch.channels_last)
    mask, counter = torch.ones(12, 10), torch.zeros((), dtype=torch.int64)
    kernel = kernel_module.MaskKernel(
        [Masked(lambda: stored.reshape(12, 10), mask, 0.5, None, counter, 0)]
    )
    for step in range(2):
        kernel.run()
        wanted = deviation_mask(stored.double().numpy(), 0.5)
        np.testing.assert_array_equal(mask.numpy(), wanted.reshape(12, 10))
        stored += draw((4, 3, 5, 2), 50 + step)


def test_far_from_all_others_all_alike_none_and_not_finite() -> None:
    weight = 1e-3 * draw((3 * BLOCK,), 1)
    weight[0] = 100.0
    alike, none, infinite = torch.full((BLOCK + 7,), 0.1), torch.zeros(0, 3), torch.ones(9)
    infinite[4] = torch.inf
    masks = Masks([weight, alike, none, infinite], [0.01, 0.6, 0.6, 0.6], [None] * 4)
    kernel_module.MaskKernel(masks.listed()).run()
    assert torch.equal(masks.masks[0], torch.from_numpy(masks.expected(0)).float())
    assert masks.masks[1].all()
    assert not masks.masks[3].any()  # no deviation is a number


NET = DATA + conv("one", "data") + conv("two", "one", kind="CConvolution") + ip("three", "two")


@pytest.mark.parametrize(("least", "compiled"), [(1, True), (10**9, False)])
def test_where_masks_are_large(least: int, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_dns.surgery.renewal.LEAST_COMPILED", least)
    net, _ = make_surgeon(NET)
    assert (
        isinstance(Renewal(find_masked_layers(net))._kernel, kernel_module.MaskKernel) == compiled
    )
    net.double()
    assert Renewal(find_masked_layers(net))._kernel is None
