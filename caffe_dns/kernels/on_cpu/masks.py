"""The renewal of any number of masks, by both rules of surgery, on a CPU, compiled by numba.

The rules are those of `caffe_dns.mask_rules`, where they take a dozen operations and nine passes
over memory for a mask. Here they take three, or one, and sums are in float64, so that a mask hardly
ever depends on the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from caffe_dns.kernels.masked import Masked, same_order
from caffe_dns.kernels.on_cpu.machine_code import compiled, compiled_in_any_order
from caffe_dns.kernels.on_cpu.threads import in_shares
from caffe_dns.mask_rules import PRUNE_BELOW, SPLICE_ABOVE

#: Numbers that are summed up at a time.
BLOCK = 1 << 14
#: The least blocks for which starting several threads pays.
LEAST_BLOCKS = 128


@compiled_in_any_order
def _sum(numbers, begin, end):
    total = np.float64(0)
    for i in range(begin, end):
        total += np.float64(numbers[np.uint64(i)])
    return total


@compiled_in_any_order
def _sum_squares(numbers, begin, end, mean):
    total = np.float64(0)
    for i in range(begin, end):
        distance = np.float64(numbers[np.uint64(i)]) - mean
        total += distance * distance
    return total


@compiled_in_any_order
def _replace(numbers, mask, begin, end, mean, limit):
    back = np.int64(0)
    for i in range(begin, end):
        distance = np.float64(numbers[np.uint64(i)]) - mean
        kept = np.float32(distance * distance >= limit)
        back += np.int64(kept > mask[np.uint64(i)])
        mask[np.uint64(i)] = kept
    return back


@compiled
def _add_up(weight, sums, first, last):
    """The sums of the blocks from `first` up to before `last`."""
    for block in range(first, last):
        sums[block] = _sum(weight, block * BLOCK, min((block + 1) * BLOCK, weight.size))


@compiled
def _add_up_squares(weight, sums, mean, first, last):
    """The same of squared distances from the mean."""
    for block in range(first, last):
        end = min((block + 1) * BLOCK, weight.size)
        sums[block] = _sum_squares(weight, block * BLOCK, end, mean)


@compiled
def _renew(weight, mask, back, mean, limit, first, last):
    """Keep what lies so far from the mean, by its square, and count what comes back."""
    for block in range(first, last):
        end = min((block + 1) * BLOCK, weight.size)
        back[block] = _replace(weight, mask, block * BLOCK, end, mean, limit)


@compiled
def _renew_alone(weight, mask, sums, threshold):
    """All of it in one thread."""
    blocks = sums.size
    _add_up(weight, sums, 0, blocks)
    mean = _sum(sums, 0, blocks) / weight.size
    _add_up_squares(weight, sums, mean, 0, blocks)
    limit = threshold * abs(threshold) * (_sum(sums, 0, blocks) / weight.size)
    _renew(weight, mask, sums, mean, limit, 0, blocks)
    return _sum(sums, 0, blocks)


@compiled_in_any_order
def _follow(numbers, mask, begin, end, lower, upper):
    back = np.int64(0)
    for i in range(begin, end):
        place = np.uint64(i)
        kept = np.float32(abs(numbers[place]) > upper + mask[place] * (lower - upper))
        back += np.int64(kept > mask[place])
        mask[place] = kept
    return back


@compiled
def _renew_by_magnitude(weight, mask, back, moments, setting, first, last):
    """Keep what is large, with hysteresis, and count what comes back."""
    threshold = max(moments[0] + setting * moments[1], np.float32(0))
    lower, upper = np.float32(PRUNE_BELOW) * threshold, np.float32(SPLICE_ABOVE) * threshold
    for block in range(first, last):
        end = min((block + 1) * BLOCK, weight.size)
        back[block] = _follow(weight, mask, block * BLOCK, end, lower, upper)


def _by_deviation(weight: np.ndarray, mask: np.ndarray, threshold: float) -> int:
    """Renew a mask by the distances from the mean; returns how many entries came back."""
    blocks = -(-weight.size // BLOCK)
    sums = np.empty(blocks)
    if blocks < LEAST_BLOCKS:
        return int(_renew_alone(weight, mask, sums, threshold))
    in_shares(blocks, work=partial(_add_up, weight, sums))
    mean = _sum(sums, 0, blocks) / weight.size
    in_shares(blocks, work=partial(_add_up_squares, weight, sums, mean))
    limit = threshold * abs(threshold) * (_sum(sums, 0, blocks) / weight.size)
    in_shares(blocks, work=partial(_renew, weight, mask, sums, mean, limit))
    return int(_sum(sums, 0, blocks))


def _by_magnitude(
    weight: np.ndarray, mask: np.ndarray, moments: np.ndarray, setting: np.float32
) -> int:
    """The same by the distances from 0."""
    blocks = -(-weight.size // BLOCK)
    back = np.empty(blocks)
    work = partial(_renew_by_magnitude, weight, mask, back, moments, setting)
    if blocks < LEAST_BLOCKS:
        work(0, blocks)
    else:
        in_shares(blocks, work=work)
    return int(back.sum())


class MaskKernel:
    """Renews masks in place; those of all layers until `choose` is called.

    Masks lie without gaps.
    """

    def __init__(self, masked: Sequence[Masked]) -> None:
        self._masked = masked
        self._chosen = {entry.layer for entry in masked}
        self._renewals = [self._prepare(entry) for entry in masked]

    def choose(self, layers: Sequence[int]) -> None:
        """From now on, renew the masks of these layers."""
        self._chosen = {*layers}

    def run(self) -> None:
        """Renew the chosen layers' masks."""
        for entry, renewal in zip(self._masked, self._renewals, strict=True):
            if entry.layer in self._chosen:
                entry.counter.add_(renewal())

    def _prepare(self, entry: Masked) -> Callable[[], int]:
        """What renews a mask and says how many entries came back."""
        weight, again, mask = entry.weight(), entry.weight(), entry.mask
        stays = weight.data_ptr() == again.data_ptr() and same_order(weight, mask)
        numbers = weight if stays else torch.empty_like(mask)
        setting = np.float32(entry.setting)
        work: Callable[[], int] = (
            partial(_by_deviation, _flat(numbers), _flat(mask), float(setting))
            if entry.moments is None
            else partial(_by_magnitude, _flat(numbers), _flat(mask), entry.moments.numpy(), setting)
        )
        if stays:
            return work

        def copy_and_work() -> int:
            numbers.copy_(entry.weight())
            return work()

        return copy_and_work


def _flat(blob: Tensor) -> np.ndarray:
    """The elements as they lie in memory."""
    return blob.as_strided((blob.numel(),), (1,)).numpy()
