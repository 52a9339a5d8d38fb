"""Renews any number of masks, by both rules of surgery, in two kernels.

PyTorch's operations need about a dozen kernels for each layer, and as many passes over memory. The
rules are those of `caffe_dns.mask_rules`, which runs everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.masked import Masked, same_order
from caffe_dns.mask_rules import PRUNE_BELOW, SPLICE_ABOVE

#: How many elements a program handles at a time, and by how many warps.
BLOCK, WARPS = 2048, 8
#: How many programs share a mask at most; each of a larger one handles several blocks.
MOST_SHARES = 1024
#: How many layers have their flags in one number.
FLAGS = 63
#: The columns of the table.
WEIGHT, MASK, MOMENTS, COUNTER, COUNT, SHARE, FIRST, LAYER, COLUMNS = (
    tl.constexpr(column) for column in range(9)
)


@triton.jit
def _row(table, owners, due, FLAGS: tl.constexpr):
    """Where in the table this program's mask stands, and whether its layer is due."""
    row = table + COLUMNS * tl.load(owners + tl.program_id(0))
    layer = tl.load(row + LAYER)
    flags = tl.load(due + layer // FLAGS)
    return row, ((flags >> (layer % FLAGS)) & 1) != 0


@triton.jit
def _extent(row):
    """The first element of this program's share of the mask, and the first one after it."""
    share = tl.load(row + SHARE)
    start = (tl.program_id(0) - tl.load(row + FIRST)) * share
    return start, tl.minimum(start + share, tl.load(row + COUNT))


@triton.jit
def _measure(table, owners, due, measures, BLOCK: tl.constexpr, FLAGS: tl.constexpr):
    """The mean of each share of the weights, and the sum of squared distances from it."""
    row, is_due = _row(table, owners, due, FLAGS)
    weight = tl.load(row + WEIGHT).to(tl.pointer_type(tl.float32))
    start, end = _extent(row)
    if is_due & (tl.load(row + MOMENTS) == 0):
        lanes = tl.arange(0, BLOCK)
        # Sums of distances from a value near the mean lose no digits.
        first = tl.load(weight + start + lanes, mask=start + lanes < end, other=0.0)
        near = tl.sum(first) / tl.minimum(end - start, BLOCK)
        sums = tl.zeros((BLOCK,), tl.float32)
        squares = tl.zeros((BLOCK,), tl.float32)
        begin = start
        while begin < end:
            places = begin + lanes
            inside = places < end
            w = tl.load(weight + places, mask=inside, other=0.0)
            distance = tl.where(inside, w - near, 0.0)
            sums += distance
            squares += distance * distance
            begin += BLOCK
        total = tl.sum(sums)
        offset = total / (end - start)
        mine = measures + 2 * tl.program_id(0)
        tl.store(mine, near + offset)
        tl.store(mine + 1, tl.maximum(tl.sum(squares) - total * offset, 0.0))


@triton.jit
def _mean_and_deviation(row, measures, MOST_SHARES: tl.constexpr):
    """Those of a whole weight, from what was measured of its shares."""
    count, share = tl.load(row + COUNT), tl.load(row + SHARE)
    shares = tl.arange(0, MOST_SHARES)
    sizes = tl.maximum(tl.minimum(count - shares * share, share), 0).to(tl.float32)
    there = sizes > 0
    theirs = measures + 2 * tl.load(row + FIRST)
    near = tl.load(theirs)
    offsets = tl.load(theirs + 2 * shares, mask=there, other=0.0) - near
    squares = tl.load(theirs + 2 * shares + 1, mask=there, other=0.0)
    offset = tl.sum(sizes * offsets) / count
    squares += sizes * (offsets - offset) * (offsets - offset)
    return near + offset, tl.sqrt(tl.sum(squares) / count)


@triton.jit
def _renew(
    table,
    owners,
    due,
    measures,
    settings,
    PRUNE_BELOW: tl.constexpr,
    SPLICE_ABOVE: tl.constexpr,
    MOST_SHARES: tl.constexpr,
    BLOCK: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """The next masks, and how many entries came back."""
    row, is_due = _row(table, owners, due, FLAGS)
    weight = tl.load(row + WEIGHT).to(tl.pointer_type(tl.float32))
    mask = tl.load(row + MASK).to(tl.pointer_type(tl.float32))
    moments = tl.load(row + MOMENTS).to(tl.pointer_type(tl.float32))
    counter = tl.load(row + COUNTER).to(tl.pointer_type(tl.int64))
    setting = tl.load(settings + tl.load(owners + tl.program_id(0)))
    by_magnitude = tl.load(row + MOMENTS) != 0
    begin, end = _extent(row)
    if is_due:
        if by_magnitude:
            threshold = tl.maximum(tl.load(moments) + setting * tl.load(moments + 1), 0.0)
            upper, lower = SPLICE_ABOVE * threshold, PRUNE_BELOW * threshold
        else:
            mean, deviation = _mean_and_deviation(row, measures, MOST_SHARES)
            upper, lower = mean + setting * deviation, mean - setting * deviation
        came_back = tl.zeros((BLOCK,), tl.int32)
        while begin < end:
            places = begin + tl.arange(0, BLOCK)
            inside = places < end
            w = tl.load(weight + places, mask=inside, other=0.0)
            old = tl.load(mask + places, mask=inside, other=0.0)
            if by_magnitude:
                kept = tl.abs(w) > upper + old * (lower - upper)
            else:
                kept = (w <= lower) | (w >= upper)
            new = kept.to(tl.float32)
            # Few entries change, so little is written.
            tl.store(mask + places, new, mask=inside & (new != old))
            came_back += (inside & (new > old)).to(tl.int32)
            begin += BLOCK
        tl.atomic_add(counter, tl.sum(came_back).to(tl.int64))


class MaskKernel:
    """Renews masks in place; those of all layers until `choose` is called."""

    def __init__(self, masked: Sequence[Masked]) -> None:
        self._masked = masked
        device = masked[0].mask.device
        self._settings = torch.tensor([entry.setting for entry in masked], device=device)
        #: Where the weights' elements lie in memory in another order than the masks', or somewhere
        #: else each time: copies in the masks' order, by the position of the mask.
        self._copies: dict[int, Tensor] = {}
        rows: list[list[int]] = []
        owners: list[int] = []
        for index, entry in enumerate(masked):
            weight, again, mask = entry.weight(), entry.weight(), entry.mask
            if weight.data_ptr() != again.data_ptr() or not same_order(weight, mask):
                weight = self._copies[index] = torch.empty_like(mask)
            count = mask.numel()
            share = BLOCK * triton.cdiv(count, BLOCK * MOST_SHARES)
            tensors = (weight, mask, entry.moments, entry.counter)
            addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
            rows.append([*addresses, count, share, len(owners), entry.layer])
            owners += [index] * triton.cdiv(count, share)
        self._table = torch.tensor(rows, device=device)
        self._owners = torch.tensor(owners, device=device)
        self._measures = torch.empty(len(owners), 2, device=device)
        self._measured = any(entry.moments is None for entry in masked)
        self._most_shares = triton.next_power_of_2(max(owners.count(i) for i in range(len(masked))))
        numbers = max(entry.layer for entry in masked) // FLAGS + 1
        self._due = torch.full((numbers,), 2**FLAGS - 1, device=device)
        self._numbers = self._due.unbind()
        self._chosen: list[int] | None = None

    def choose(self, layers: list[int]) -> None:
        """From now on, renew the masks of these layers. Does not wait for the device."""
        if layers == self._chosen:
            return
        for index, number in enumerate(self._numbers):
            bits = (layer - index * FLAGS for layer in layers if layer // FLAGS == index)
            number.fill_(sum(1 << bit for bit in bits))
        self._chosen = layers

    def run(self) -> None:
        """Renew the chosen layers' masks. May be captured as a CUDA graph."""
        for index, copy in self._copies.items():
            copy.copy_(self._masked[index].weight())
        grid = (len(self._owners),)
        shared = (self._table, self._owners, self._due, self._measures)
        # Kernels start on the current GPU, wherever their tensors are.
        with torch.cuda.device_of(self._table):
            if self._measured:
                _measure[grid](*shared, BLOCK=BLOCK, FLAGS=FLAGS, num_warps=WARPS)
            _renew[grid](
                *shared,
                self._settings,
                PRUNE_BELOW=PRUNE_BELOW,
                SPLICE_ABOVE=SPLICE_ABOVE,
                MOST_SHARES=self._most_shares,
                BLOCK=BLOCK,
                FLAGS=FLAGS,
                num_warps=WARPS,
            )
