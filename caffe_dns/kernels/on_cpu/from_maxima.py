"""Gradients of a convolution from those of the maxima of its top, on a CPU, compiled by numba.

A pooling of 2 x 2 hands its gradient to one in four numbers of a convolution's top: the others have
zeros, with which oneDNN multiplies like with any numbers. Here each gradient that is there adds its
multiple of a window of the bottom to the weight's gradient, and of the weight to a window of the
bottom's. Sums of many stay in registers, a row of a window at a time.

Images and weights have their channels innermost, so that such a row lies in one piece. It is read
and written in whole vectors: what is written to has room for them, or its neighbours get zeros.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_dns.kernels.on_cpu.machine_code import compiled
from caffe_dns.kernels.on_cpu.vectors import LANES, MOST_VECTORS, add_products

Pair = tuple[int, int]

#: Images whose windows an output sums up at a time, so that they stay in the nearest cache.
IMAGES = 2
#: Numbers that 32 bits can count, and those of which float32 has every one.
MOST, MOST_IN_PLANE = 2**31, 2**24


@compiled
def _add_windows(total, at, step, source, stride, places, factors, found, rows, vectors):
    """Add multiples of windows of the source, whose rows are `stride` apart, to one of a total."""
    span = (np.int64(0), np.int64(found))
    for t in range(rows):
        begin = np.int64(0)
        while begin < vectors:
            some = min(np.int64(MOST_VECTORS), vectors - begin)
            there, here = at + t * step + begin * LANES, t * stride + begin * LANES
            add_products(
                total,
                np.int64(there),
                source,
                np.int64(here),
                np.int64(1),
                span,
                True,
                places,
                factors,
                np.float32(0),
                False,
                some,
            )
            begin += some


@compiled
def _weight(gradient, places, x, total, rows, vectors, line, first, last):
    """Gradients of the outputs from `first` up to before `last`.

    `gradient` and `places` are images x windows x outputs, and say where in x the windows lie.
    """
    images, windows, _ = gradient.shape
    factors = np.empty(IMAGES * windows, np.float32)
    chosen = np.empty(IMAGES * windows, np.int32)
    pitch = vectors * LANES
    for begin in range(0, images, IMAGES):
        for o in range(first, last):
            found = 0
            for n in range(begin, min(begin + IMAGES, images)):
                for window in range(windows):
                    if gradient[n, window, o] != 0:
                        factors[found] = gradient[n, window, o]
                        chosen[found] = places[n, window, o]
                        found += 1
            at = o * rows * pitch
            _add_windows(total, at, pitch, x, line, chosen, factors, found, rows, vectors)


@compiled
def _bottom(gradient, places, weight, totals, size, rows, vectors, line, first, last):
    """The same of the bottom's images, of `size` numbers.

    Outputs that have their maximum in a window at one place are added together.
    """
    _, windows, outputs = gradient.shape
    # In a window, there are at most as many places as outputs, and as many outputs at each.
    seen, found = np.empty(outputs, np.int64), np.empty(outputs, np.int64)
    factors = np.empty((outputs, outputs), np.float32)
    chosen = np.empty((outputs, outputs), np.int32)
    pitch = vectors * LANES
    for n in range(first, last):
        for window in range(windows):
            count = 0
            for o in range(outputs):
                if gradient[n, window, o] == 0:
                    continue
                place, k = places[n, window, o] - n * size, 0
                while k < count and seen[k] != place:
                    k += 1
                if k == count:
                    seen[k], found[k] = place, 0
                    count += 1
                factors[k, found[k]] = gradient[n, window, o]
                chosen[k, found[k]] = o * rows * pitch
                found[k] += 1
            for k in range(count):
                _add_windows(
                    totals[n],
                    seen[k],
                    line,
                    weight,
                    pitch,
                    chosen[k],
                    factors[k],
                    found[k],
                    rows,
                    vectors,
                )


def gradients(
    gradient: Tensor, maxima: Tensor, x: Tensor, w: Tensor, stride: Pair, width: int, *, below: bool
) -> tuple[Tensor | None, Tensor]:
    """The gradients of x, if `below`, and w, from that of the maxima of their convolution.

    `maxima` says where in the planes of the convolution's top, of this width, they are; there is no
    padding. All are channels_last, x with fewer than MOST numbers, and such a plane with fewer than
    MOST_IN_PLANE. The bits do not depend on the number of threads.
    """
    images, outputs, channels, rows = len(x), len(w), w.shape[1], w.shape[2]
    row, line = w.shape[3] * channels, x.shape[3] * channels
    size = x.shape[2] * line
    # That of y, x in an image is y * stride[0] * line + x * across.
    across = stride[1] * channels
    # Exact below MOST_IN_PLANE, and ten times as fast as a division of integers.
    in_rows = (maxima.float() / width).int()
    places = (maxima.int() * across).add_(in_rows, alpha=stride[0] * line - width * across)
    places += (torch.arange(images, dtype=torch.int32) * size).view(-1, 1, 1, 1)
    values, where = _by_windows(gradient), _by_windows(places)
    vectors = -(-row // LANES)
    pixels = _with_room(_flat(x))
    weight = F.pad(_flat(w).view(-1, row), (0, vectors * LANES - row)).view(-1).numpy()
    along = np.zeros((outputs, rows, vectors * LANES), np.float32)
    result = np.zeros((images, size + LANES), np.float32) if below else None
    threads = torch.get_num_threads()

    def work(share: int) -> None:
        first, last = (outputs * k // threads for k in (share, share + 1))
        _weight(values, where, pixels, along.reshape(-1), rows, vectors, line, first, last)
        if result is not None:
            first, last = (images * k // threads for k in (share, share + 1))
            _bottom(values, where, weight, result, size, rows, vectors, line, first, last)

    others = [_pool(threads).submit(work, share) for share in range(1, threads)]
    work(0)
    for other in others:
        other.result()
    return (
        None if result is None else _like(x, result[:, :size]),
        _like(w, along[:, :, :row]),
    )


def _with_room(numbers: Tensor) -> np.ndarray:
    """The numbers, and behind them room for a vector."""
    room = torch.empty(len(numbers) + LANES)
    room[: len(numbers)] = numbers
    return room.numpy()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, "gradients")


def _by_windows(blob: Tensor) -> np.ndarray:
    """Images x windows x channels."""
    blob = blob.contiguous(memory_format=torch.channels_last)
    return blob.permute(0, 2, 3, 1).flatten(1, 2).numpy()


def _flat(blob: Tensor) -> Tensor:
    """The numbers in memory, which lie there with the channels innermost."""
    return blob.detach().permute(0, 2, 3, 1).view(-1)


def _like(blob: Tensor, numbers: np.ndarray) -> Tensor:
    """A blob like another, with these numbers."""
    result = torch.empty_like(blob)
    _flat(result).view(numbers.shape).copy_(torch.from_numpy(numbers))
    return result
