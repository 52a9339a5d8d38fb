"""Gradients of a convolution from those of the maxima of its top, on a CPU, compiled by numba.

A pooling of 2 x 2 hands its gradient to one in four numbers of a convolution's top: the others have
zeros, with which oneDNN multiplies like with any numbers. Here each gradient that is there adds its
multiple of a window of the bottom to the weight's gradient, and of the weight to a window of the
bottom's. Four are added at once, so that what they are added to is read and written once for them.

Images and weights have their channels innermost: a row of a window lies in one piece.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from caffe_dns.kernels.on_cpu.machine_code import compiled

Pair = tuple[int, int]

#: Images whose windows an output sums up at a time, so that they are still in a cache for the next.
IMAGES = 16
#: The most maxima at different places that the outputs may have in a window.
MOST_PLACES = 16


@compiled
def _add_four(total, at, step, source, places, stride, factors, rows, row):
    """Add multiples of four windows of the source, whose rows are `stride` apart, to a total's."""
    a, b, c, d = factors[0], factors[1], factors[2], factors[3]
    # No unsigned index counts from the end, which would have to be looked at for each.
    here, first, second = np.uint64(at), np.uint64(places[0]), np.uint64(places[1])
    third, fourth = np.uint64(places[2]), np.uint64(places[3])
    for t in range(np.uint64(rows)):
        down = t * np.uint64(stride)
        p, q, r, s = first + down, second + down, third + down, fourth + down
        for j in range(np.uint64(row)):
            more = a * source[p + j] + b * source[q + j] + c * source[r + j] + d * source[s + j]
            total[here + j] += more
        here += np.uint64(step)


@compiled
def _add_one(total, at, step, source, place, stride, factor, rows, row):
    """The same of one window."""
    for t in range(rows):
        here, there = np.uint64(at + t * step), np.uint64(place + t * stride)
        for j in range(np.uint64(row)):
            total[here + j] += factor * source[there + j]


@compiled
def _weight(gradient, places, x, total, windows, rows, row, stride, first, last):
    """Gradients of the outputs from `first` up to before `last`.

    `gradient` and `places` are images x windows x outputs, and say where in x the windows lie.
    """
    images = len(gradient)
    factors, chosen = np.empty(4, np.float32), np.empty(4, np.int64)
    for begin in range(0, images, IMAGES):
        for o in range(first, last):
            at, found = o * rows * row, 0
            for n in range(begin, min(begin + IMAGES, images)):
                for window in range(windows):
                    if gradient[n, window, o] == 0:
                        continue
                    factors[found] = gradient[n, window, o]
                    chosen[found] = places[n, window, o]
                    found += 1
                    if found == 4:
                        _add_four(total, at, row, x, chosen, stride, factors, rows, row)
                        found = 0
            for i in range(found):
                _add_one(total, at, row, x, chosen[i], stride, factors[i], rows, row)


@compiled
def _bottom(gradient, places, weight, total, windows, rows, row, stride, first, last):
    """The same of the bottom's images, where outputs with maxima at one place are added at once."""
    outputs = gradient.shape[2]
    seen, found = np.empty(MOST_PLACES, np.int64), np.empty(MOST_PLACES, np.int64)
    factors = np.empty((MOST_PLACES, 4), np.float32)
    chosen = np.empty((MOST_PLACES, 4), np.int64)
    for n in range(first, last):
        for window in range(windows):
            count = 0
            for o in range(outputs):
                if gradient[n, window, o] == 0:
                    continue
                place, k = places[n, window, o], 0
                while k < count and seen[k] != place:
                    k += 1
                if k == count:
                    seen[k], found[k] = place, 0
                    count += 1
                factors[k, found[k]] = gradient[n, window, o]
                chosen[k, found[k]] = o * rows * row
                found[k] += 1
                if found[k] == 4:
                    _add_four(total, place, stride, weight, chosen[k], row, factors[k], rows, row)
                    found[k] = 0
            for k in range(count):
                for i in range(found[k]):
                    _add_one(
                        total, seen[k], stride, weight, chosen[k, i], row, factors[k, i], rows, row
                    )


def gradients(
    gradient: Tensor, maxima: Tensor, x: Tensor, w: Tensor, stride: Pair, width: int, *, below: bool
) -> tuple[Tensor | None, Tensor]:
    """The gradients of x, if `below`, and w, from that of the maxima of their convolution.

    `maxima` says where in the planes of the convolution's top, of this width, they are; there is no
    padding. All are channels_last. The bits do not depend on the number of threads.
    """
    channels, rows = w.shape[1], w.shape[2]
    row, line = w.shape[3] * channels, x.shape[3] * channels
    # That of y, x in an image is y * stride[0] * line + x * across.
    across = stride[1] * channels
    places = maxima * across + (maxima // width) * (stride[0] * line - width * across)
    places += torch.arange(len(x)).view(-1, 1, 1, 1) * x[0].numel()
    along = torch.zeros_like(w)
    result = torch.zeros_like(x) if below else None
    values, where = _by_windows(gradient), _by_windows(places)
    images, weight, weight_sums = _flat(x), _flat(w), _flat(along)
    image_sums = None if result is None else _flat(result)
    windows = values.shape[1]
    threads = torch.get_num_threads()

    def work(share: int) -> None:
        first, last = (len(w) * k // threads for k in (share, share + 1))
        _weight(values, where, images, weight_sums, windows, rows, row, line, first, last)
        if image_sums is not None:
            first, last = (len(x) * k // threads for k in (share, share + 1))
            _bottom(values, where, weight, image_sums, windows, rows, row, line, first, last)

    others = [_pool(threads).submit(work, share) for share in range(1, threads)]
    work(0)
    for other in others:
        other.result()
    return result, along


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, "gradients")


def _by_windows(blob: Tensor) -> np.ndarray:
    """Images x windows x channels."""
    blob = blob.contiguous(memory_format=torch.channels_last)
    return blob.permute(0, 2, 3, 1).flatten(1, 2).numpy()


def _flat(blob: Tensor) -> np.ndarray:
    """The numbers in memory, which lie there with the channels innermost."""
    return blob.detach().permute(0, 2, 3, 1).view(-1).numpy()
