"""Mean and deviation of a batch's channels, and the sums that their gradients need.

Statistics are taken around a pivot near the mean, so that a large mean does not cost digits, and
summed in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.layout import Layout, layout_of, tile

#: For how many channels a program adds up the sums of all splits, and how many splits at a time.
FINISHED, SPLITS = 8, 256
#: The same where there are more splits than that, and by how many warps.
MANY, MANY_WARPS = 1024, 8


@triton.jit
def load(blob, rows, channels, num_rows, num_channels, plane, LAST: tl.constexpr):
    """A tile in float32, zeros beyond the blob, and which of its elements are inside."""
    inside, where = tile(rows, channels, num_rows, num_channels, plane, LAST)
    return tl.load(blob + where, mask=inside, other=0.0).to(tl.float32), inside, where


@triton.jit
def _distances(blob, pivot, rows, channels, num_rows, num_channels, plane, LAST: tl.constexpr):
    """The distances of a tile's values from the pivot."""
    x, inside, _ = load(blob, rows, channels, num_rows, num_channels, plane, LAST)
    return tl.where(inside, x - pivot, 0.0)


@triton.jit
def _sum(
    blob,
    pivots,
    sums,
    num_rows,
    num_channels,
    plane,
    LAST: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    STAGES: tl.constexpr,
    FROM_END: tl.constexpr,
):
    """Sums of x - pivot and of its square for each channel, over a share of the rows.

    The pivot is the mean of the first rows. A blob that streams is read from its end with FROM_END.
    """
    split, splits = tl.program_id(1), tl.num_programs(1)
    channels = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    rows = tl.arange(0, HEIGHT)[:, None]
    first, _inside, _where = load(blob, rows, channels, num_rows, num_channels, plane, LAST)
    pivot = tl.sum(first, 0)[None, :] / tl.minimum(num_rows, HEIGHT)
    total = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    squares = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    if STAGES > 0:
        last = (num_rows - 1) // HEIGHT * HEIGHT
        for place in tl.range(split * HEIGHT, num_rows, splits * HEIGHT, num_stages=STAGES):
            begin = last - place if FROM_END else place
            distance = _distances(
                blob, pivot, begin + rows, channels, num_rows, num_channels, plane, LAST
            )
            total += distance
            squares += distance * distance
    else:
        start = split * HEIGHT
        while start < num_rows:
            for _ in tl.static_range(AT_ONCE):
                distance = _distances(
                    blob, pivot, start + rows, channels, num_rows, num_channels, plane, LAST
                )
                total += distance
                squares += distance * distance
                start += splits * HEIGHT
    known = channels < num_channels
    place = sums + 2 * split * num_channels + channels
    tl.store(place, tl.sum(total, 0)[None, :], mask=known)
    tl.store(place + num_channels, tl.sum(squares, 0)[None, :], mask=known)
    tl.store(pivots + channels, pivot, mask=known & (split == 0))


@triton.jit
def add_up(sums, splits, channels, num_channels, SPLITS: tl.constexpr, FINISHED: tl.constexpr):
    """Both sums of each channel over all splits, some splits at a time."""
    known = channels < num_channels
    first = tl.zeros((SPLITS, FINISHED), tl.float32)
    second = tl.zeros((SPLITS, FINISHED), tl.float32)
    split = tl.arange(0, SPLITS)[:, None]
    start = 0
    while start < splits:
        place = sums + 2 * (start + split) * num_channels + channels[None, :]
        inside = (start + split < splits) & known[None, :]
        first += tl.load(place, mask=inside, other=0.0)
        second += tl.load(place + num_channels, mask=inside, other=0.0)
        start += SPLITS
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit
def _finish(
    sums,
    splits,
    pivots,
    bias,
    means,
    inverse_stds,
    mean_sums,
    variance_sums,
    batches,
    num_rows,
    num_channels,
    eps,
    fraction,
    unbias,
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    FINISHED: tl.constexpr,
):
    """Mean and 1 / standard deviation of each channel; updates the statistics with the batch."""
    channels = tl.program_id(0) * FINISHED + tl.arange(0, FINISHED)
    known = channels < num_channels
    total, squares = add_up(sums, splits, channels, num_channels, SPLITS, FINISHED)
    distance = total / num_rows
    mean = tl.load(pivots + channels, mask=known, other=0.0) + distance
    variance = tl.maximum(squares / num_rows - distance * distance, 0.0)
    tl.store(means + channels, mean, mask=known)
    tl.store(inverse_stds + channels, 1 / tl.sqrt(variance + eps), mask=known)
    if HAS_BIAS:
        mean += tl.load(bias + channels, mask=known, other=0.0)
    before = tl.load(mean_sums + channels, mask=known, other=0.0)
    tl.store(mean_sums + channels, fraction * before + mean, mask=known)
    before = tl.load(variance_sums + channels, mask=known, other=0.0)
    tl.store(variance_sums + channels, fraction * before + unbias * variance, mask=known)
    if tl.program_id(0) == 0:
        tl.store(batches, fraction * tl.load(batches) + 1)


@triton.jit
def _add_up_splits(
    sums, result, zeros, splits, numbers, num_zeros, SPLITS: tl.constexpr, FINISHED: tl.constexpr
):
    place = tl.program_id(0) * FINISHED + tl.arange(0, FINISHED)
    known = place < numbers
    total = tl.zeros((SPLITS, FINISHED), tl.float32)
    split = tl.arange(0, SPLITS)[:, None]
    start = 0
    while start < splits:
        inside = (start + split < splits) & known[None, :]
        total += tl.load(sums + (start + split) * numbers + place[None, :], mask=inside, other=0.0)
        start += SPLITS
    tl.store(result + place, tl.sum(total, 0), mask=known)
    if zeros is not None:
        tl.store(zeros + place, tl.zeros((FINISHED,), tl.float32), mask=place < num_zeros)


def _settings(splits: int) -> dict[str, int]:
    """The kernel's settings for adding up this many splits."""
    if splits <= SPLITS:
        return {"SPLITS": SPLITS, "FINISHED": FINISHED}
    return {"SPLITS": MANY, "FINISHED": FINISHED, "num_warps": MANY_WARPS}


def add_up_splits(sums: Tensor, dtype: torch.dtype, zeros: Tensor | None = None) -> Tensor:
    """The sums of all splits, splits x numbers in float32, for each number in this type.

    `zeros`, no more than these numbers, are set to 0 in the same kernel. Where there are few
    numbers, PyTorch adds up in a single block, which takes several times as long.
    """
    splits, numbers = sums.shape
    result = torch.empty(numbers, dtype=dtype, device=sums.device)
    settings = _settings(splits)
    at_once = min(settings["SPLITS"], triton.next_power_of_2(splits))
    settings |= {"SPLITS": at_once, "FINISHED": settings["SPLITS"] * FINISHED // at_once}
    _add_up_splits[(triton.cdiv(numbers, settings["FINISHED"]),)](
        sums, result, zeros, splits, numbers, 0 if zeros is None else len(zeros), **settings
    )
    return result


@dataclass(frozen=True)
class Statistics:
    """BatchNorm's running statistics, updated in place by each pass.

    `fraction` is the share that is kept when a batch is added.
    """

    mean_sum: Tensor
    variance_sum: Tensor
    batches: Tensor
    fraction: float


@dataclass(frozen=True)
class Sums:
    """Sums of x - pivot and of its square for each channel, over shares of the rows.

    `pivot` is a number near each channel's mean, `sums` are shares x 2 x channels; float32.
    """

    pivot: Tensor
    sums: Tensor


def add(x: Tensor, layout: Layout, from_end: bool = False) -> Sums:
    """The sums of a pass over x, from its end if that is wanted and x is large."""
    channels = layout.channels
    pivot = torch.empty(channels, device=x.device)
    sums = torch.empty((layout.splits, 2, channels), device=x.device)
    _sum[(layout.sum_blocks, layout.splits)](
        x, pivot, sums, **layout.streamed(x), FROM_END=from_end
    )
    return Sums(pivot, sums)


def measure(
    found: Sums, rows: int, bias: Tensor | None, statistics: Statistics, eps: float
) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each channel of so many rows."""
    channels = len(found.pivot)
    mean, inverse_std = torch.empty((2, channels), device=found.pivot.device)
    _finish[(triton.cdiv(channels, FINISHED),)](
        found.sums,
        len(found.sums),
        found.pivot,
        bias,
        mean,
        inverse_std,
        statistics.mean_sum,
        statistics.variance_sum,
        statistics.batches,
        rows,
        channels,
        eps,
        statistics.fraction,
        rows / max(1, rows - 1),
        HAS_BIAS=bias is not None,
        **_settings(len(found.sums)),
    )
    return mean, inverse_std


def measured(
    x: Tensor,
    sums: Sums | None,
    bias: Tensor | None,
    statistics: Statistics,
    eps: float,
    *,
    from_end: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each channel of x, which is added up if need be.

    With `from_end`, what lies first in memory is read last, and is still in the cache afterwards.
    """
    layout = layout_of(x)
    return measure(sums or add(x, layout, from_end), layout.rows, bias, statistics, eps)
