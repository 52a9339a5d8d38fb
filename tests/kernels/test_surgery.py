"""The kernels that renew masks against the rules in float64; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.surgery.masked_layers import Count, find_masked_layers
from caffe_dns.surgery.renewal import Renewal
from tests.kernels import masks as masks_module
from tests.surgery.test_surgeon import DATA, conv, ip, make_surgeon, masks, operated
from tests.test_mask_rules import deviation_mask

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
kernel_module = import_module("caffe_dns.kernels.surgery")
BLOCK = kernel_module.BLOCK

SHAPES = [(7, 11), (BLOCK,), (BLOCK + 1,), (2, 3, 5, 4), (1,), (BLOCK - 1, 3), (2, BLOCK)]


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return masks_module.draw(shape, seed, DEVICE)


class Masks(masks_module.Masks):
    def kernel(self) -> Any:
        return kernel_module.MaskKernel(self.listed())


@pytest.mark.parametrize("shift", [0.0, 20.0])
def test_by_deviation(shift: float) -> None:
    weights = [draw(shape, seed) + shift for seed, shape in enumerate(SHAPES)]
    masks = Masks(weights, [0.3, 0.6, 1.0, 0.0, 0.5, 1.3, 0.6], [None] * len(SHAPES))
    kernel = masks.kernel()
    masks.check(kernel, masks.layers)
    for weight in weights:
        weight += 0.25 * draw(weight.shape, 20)
    masks.check(kernel, masks.layers)
    assert (masks.counters[:-1] > 0).sum() >= 4


def test_by_magnitude() -> None:
    weights = [draw(shape, seed) for seed, shape in enumerate(SHAPES)]
    moments: list[Tensor | None] = [
        torch.tensor([0.5 + 0.1 * index, 0.25], device=DEVICE) for index in range(len(SHAPES))
    ]
    masks = Masks(weights, [0.3, 0.6, -5.0, 0.0, 0.5, 1.3, 0.6], moments)
    kernel = masks.kernel()
    masks.check(kernel, masks.layers)
    # Moments that are measured anew count at once.
    for pair in moments:
        assert pair is not None
        pair.mul_(0.75)
    masks.check(kernel, masks.layers)


def test_only_layers_that_are_due() -> None:
    kinds = [None, torch.tensor([0.5, 0.25], device=DEVICE)]
    weights = [draw((3, 5 + index), index) for index in range(8)]
    # More layers than flags in a number, and two masks of one layer.
    layers = [0, 1, 1, 2, 61, 62, 63, 130]
    masks = Masks(weights, [0.6] * 8, kinds * 4, layers)
    kernel = masks.kernel()
    for step, due in enumerate(([1, 62], [0, 2, 63], [130], [], [61, 62, 63, 130])):
        kernel.choose(due)
        masks.check(kernel, due)
        for weight in weights:
            weight += 0.5 * draw(weight.shape, 30 + step)


def test_weights_in_another_order_than_their_masks() -> None:
    weights = [
        draw((4, 3, 5, 2), 1).contiguous(memory_format=torch.channels_last),
        draw((4, 1, 5, 2), 2).contiguous(memory_format=torch.channels_last),
        draw((4, 3, 5, 2), 3),
        draw((6, 4), 4).t(),
        draw((4, 3, 5, 2), 5).contiguous(memory_format=torch.channels_last),
    ]
    moments = torch.tensor([0.5, 0.25], device=DEVICE)
    masks = Masks(weights, [0.6] * 5, [None, None, moments, moments, moments])
    for index in (0, 1, 3):
        masks.masks[index] = masks.masks[index].contiguous()
    masks.masks[2] = masks.masks[2].contiguous(memory_format=torch.channels_last)
    kernel = masks.kernel()
    for step in range(2):
        masks.check(kernel, masks.layers)
        for weight in weights:
            weight += 0.5 * draw(tuple(weight.shape), 40 + step)


def test_a_weight_that_is_a_new_tensor_each_time() -> None:
    stored = draw((4, 3, 5, 2), 1).contiguous(memory_format=torch.channels_last)
    mask, counter = torch.ones(12, 10, device=DEVICE), torch.zeros(1, dtype=torch.int64).to(DEVICE)
    kernel = kernel_module.MaskKernel(
        [kernel_module.Masked(lambda: stored.reshape(12, 10), mask, 0.5, None, counter[0], 0)]
    )
    for step in range(2):
        kernel.run()
        wanted = deviation_mask(stored.cpu().double().numpy(), 0.5)
        np.testing.assert_array_equal(mask.cpu().numpy(), wanted.reshape(12, 10))
        stored += draw((4, 3, 5, 2), 50 + step)


def test_a_large_weight_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "MOST_SHARES", 4)
    weights = [draw((count,), count) for count in (9 * BLOCK + 5, 8 * BLOCK, 3 * BLOCK)]
    masks = Masks(weights, [0.6] * 3, [None, torch.tensor([0.5, 0.25], device=DEVICE), None])
    kernel = masks.kernel()
    assert len(kernel._owners) == 4 + 4 + 3
    masks.check(kernel, masks.layers)


def test_one_weight_far_from_all_others() -> None:
    weight = 1e-3 * draw((3 * BLOCK,), 1)
    weight[0] = 100.0
    masks = Masks([weight], [0.01], [None])
    masks.check(masks.kernel(), [0])


def test_weights_that_are_all_the_same_are_kept() -> None:
    masks = Masks([torch.full((BLOCK + 7,), 0.1, device=DEVICE)], [0.6], [None])
    masks.kernel().run()
    assert masks.masks[0].all()


# In a training run --------------------------------------------------------------------------------

BOTH = DATA + conv("one", "data") + conv("two", "one", kind="CConvolution")
BOTH += ip("three", "two", "threshold: 0.4") + ip("four", "three", kind="CInnerProduct")
STAGES = """
base_lr: 0.1 lr_policy: "fixed" surgery_iter_gamma: 0.05
surgery_stage { iterations: 15 }
surgery_stage {
  iterations: 15 layer { name: "one" threshold: 1.1 } layer { name: "two" c_rate: 0.1 }
}
surgery_stage { iterations: 15 layer { name: "three" sparsity: 0.5 } layer { name: "four" } }
"""


def train(with_kernel: bool) -> tuple[list[int], list[list[Count]], list[Tensor]]:
    """The iterations at which masks changed, the counts of all displays, and masks on the way."""
    net, surgeon = make_surgeon(BOTH, STAGES)
    renewed, counts, found = [], [], []
    for begin in range(0, 45, 9):
        renewed += operated(net, surgeon, range(begin, begin + 9))
        assert (surgeon._renewal._kernel is not None) == with_kernel
        counts.append(surgeon.display())
        found += masks(net)
    surgeon.update_masks_for_last_display(44)
    return renewed, counts, found + masks(net)


@pytest.mark.skipif(DEVICE != "cpu", reason="trains on a CPU, by interpreted kernels")
def test_the_same_as_one_layer_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "wanted", lambda device: False)
    apart = train(with_kernel=False)
    monkeypatch.setattr(kernels, "wanted", lambda device: True)
    together = train(with_kernel=True)
    assert together[:2] == apart[:2]
    assert len(apart[0]) > 15
    assert all(torch.equal(*pair) for pair in zip(apart[2], together[2], strict=True))


def test_other_types_go_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "wanted", lambda device: True)
    net, _ = make_surgeon(BOTH)
    net.double()
    assert Renewal(find_masked_layers(net))._kernel is None
