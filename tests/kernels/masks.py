"""Masks of drawn weights, and a kernel that renews them, against the rules in float64."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_dns.kernels.masked import Masked
from tests.test_mask_rules import deviation_mask, hysteresis_mask


def draw(shape: tuple[int, ...], seed: int, device: str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


class Masks:
    """Masks of drawn weights, each a layer of its own, and the kernel that renews them."""

    def __init__(
        self,
        weights: Sequence[Tensor],
        settings: Sequence[float],
        moments: Sequence[Tensor | None],
        layers: Sequence[int] | None = None,
    ) -> None:
        self.weights, self.settings, self.moments = weights, settings, moments
        device = weights[0].device
        before = ((draw(tuple(w.shape), 9, str(device)) > 0).float() for w in weights)
        self.masks = [
            torch.empty_like(w).copy_(mask) for w, mask in zip(weights, before, strict=True)
        ]
        self.layers = list(layers or range(len(weights)))
        self.counters = torch.zeros(max(self.layers) + 1, dtype=torch.int64, device=device)

    def listed(self) -> list[Masked]:
        """What a kernel is told of them."""
        rows = zip(self.weights, self.masks, self.settings, self.moments, self.layers, strict=True)
        return [
            Masked(partial(Tensor.detach, w), mask, setting, moments, self.counters[layer], layer)
            for w, mask, setting, moments, layer in rows
        ]

    def expected(self, index: int) -> np.ndarray:
        """The next mask, by the loops of the forks."""
        weight = self.weights[index].cpu().double().numpy()
        moments, setting = self.moments[index], float(np.float32(self.settings[index]))
        if moments is None:
            return deviation_mask(weight, setting)
        before = self.masks[index].cpu().double().numpy()
        mu, sigma = moments.tolist()
        return hysteresis_mask(weight, before, mu, sigma, setting)

    def check(self, kernel: Any, due: Sequence[int]) -> None:
        """Run the kernel, and compare the masks and the counters with what they should be."""
        counts = self.counters.tolist()
        expected = [mask.cpu().numpy().copy() for mask in self.masks]
        for index, layer in enumerate(self.layers):
            if layer in due:
                renewed = self.expected(index)
                counts[layer] += int((renewed > expected[index]).sum())
                expected[index] = renewed
        kernel.run()
        for mask, wanted in zip(self.masks, expected, strict=True):
            np.testing.assert_array_equal(mask.cpu().numpy(), wanted)
        assert self.counters.tolist() == counts
