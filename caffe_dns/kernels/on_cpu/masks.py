"""Renews any number of masks, by both rules of surgery, on a CPU, compiled by numba.

The rules are those of `caffe_dns.mask_rules`, which take a dozen operations and nine passes over
memory per mask. Here they take three, or one. Sums are in float64, so that a mask hardly ever
depends on the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from caffe_dns.kernels.masked import Masked, same_order
from caffe_dns.kernels.on_cpu.machine_code import compiled, compiled_in_any_order, part
from caffe_dns.kernels.on_cpu.threads import ALONE, finish, in_turns, team
from caffe_dns.mask_rules import PRUNE_BELOW, SPLICE_ABOVE

#: Numbers that are summed up at a time.
BLOCK = 1 << 14
#: Blocks that a thread takes at a time.
TOGETHER = 4
#: The least blocks for which several threads pay.
LEAST_BLOCKS = 8


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


@part
def _blocks(turn, blocks):
    """Those of a turn."""
    return range(turn * TOGETHER, min((turn + 1) * TOGETHER, blocks))


@part
def _turns(blocks):
    return -(-blocks // TOGETHER)


@part
def _end(numbers, block):
    return min((block + 1) * BLOCK, numbers.size)


@part
def _sum_blocks(arguments, turn):
    weight, sums = arguments
    for block in _blocks(turn, sums.size):
        sums[block] = _sum(weight, block * BLOCK, _end(weight, block))


@part
def _sum_squares_of_blocks(arguments, turn):
    weight, sums, mean = arguments
    for block in _blocks(turn, sums.size):
        sums[block] = _sum_squares(weight, block * BLOCK, _end(weight, block), mean)


@part
def _replace_blocks(arguments, turn):
    weight, mask, back, mean, limit = arguments
    for block in _blocks(turn, back.size):
        back[block] = _replace(weight, mask, block * BLOCK, _end(weight, block), mean, limit)


@compiled
def _by_deviation(threads, weight, mask, sums, threshold):
    """Keep what lies so far from the mean; `sums` gets what came back of each block."""
    blocks = sums.size
    done = in_turns(threads, _turns(blocks), _sum_blocks, (weight, sums))
    mean = _sum(sums, 0, blocks) / weight.size
    done &= in_turns(threads, _turns(blocks), _sum_squares_of_blocks, (weight, sums, mean))
    limit = threshold * abs(threshold) * (_sum(sums, 0, blocks) / weight.size)
    return done & in_turns(
        threads, _turns(blocks), _replace_blocks, (weight, mask, sums, mean, limit)
    )


@compiled_in_any_order
def _follow(numbers, mask, begin, end, lower, upper):
    back = np.int64(0)
    for i in range(begin, end):
        place = np.uint64(i)
        kept = np.float32(abs(numbers[place]) > upper + mask[place] * (lower - upper))
        back += np.int64(kept > mask[place])
        mask[place] = kept
    return back


@part
def _follow_blocks(arguments, turn):
    weight, mask, back, lower, upper = arguments
    for block in _blocks(turn, back.size):
        back[block] = _follow(weight, mask, block * BLOCK, _end(weight, block), lower, upper)


@compiled
def _by_magnitude(threads, weight, mask, back, moments, setting):
    """Keep what is large, with hysteresis; `back` gets what came back of each block."""
    threshold = max(moments[0] + setting * moments[1], np.float32(0))
    lower, upper = np.float32(PRUNE_BELOW) * threshold, np.float32(SPLICE_ABOVE) * threshold
    return in_turns(threads, _turns(back.size), _follow_blocks, (weight, mask, back, lower, upper))


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
        work = (
            _renewal(_by_deviation, numbers, mask, float(setting))
            if entry.moments is None
            else _renewal(_by_magnitude, numbers, mask, entry.moments.numpy(), setting)
        )
        if stays:
            return work

        def copy_and_work() -> int:
            numbers.copy_(entry.weight())
            return work()

        return copy_and_work


def _renewal(
    kernel: Callable[..., bool], numbers: Tensor, mask: Tensor, *setting: object
) -> Callable[[], int]:
    """What renews a mask by a kernel and says how many entries came back."""
    weight, renewed = _flat(numbers), _flat(mask)
    back = np.empty(-(-weight.size // BLOCK))

    def work() -> int:
        threads = team() if len(back) >= LEAST_BLOCKS else ALONE
        finish(kernel(threads, weight, renewed, back, *setting))
        return int(back.sum())

    return work


def _flat(blob: Tensor) -> np.ndarray:
    """The elements as they lie in memory."""
    return blob.as_strided((blob.numel(),), (1,)).numpy()
