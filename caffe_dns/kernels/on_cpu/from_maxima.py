"""Gradients of a convolution from those of the maxima of its top, on a CPU, compiled by numba.

A 2 x 2 pooling passes its gradient to one in four values of a convolution's top; the others are
zero, but oneDNN multiplies by them all the same. Here each nonzero gradient adds its multiple of a
window of the bottom to the weight's gradient, and of the weight to a window of the bottom's. Sums
over many stay in registers, a row of a window at a time, or several short ones.

Images and weights are channels-last, so that such a row is contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_dns.kernels.on_cpu.machine_code import compiled, part
from caffe_dns.kernels.on_cpu.threads import finish, in_turns, team
from caffe_dns.kernels.on_cpu.vectors import LANES
from caffe_dns.kernels.on_cpu.window_vectors import (
    MOST_ROWS,
    MOST_WHOLE,
    WHOLE,
    add_rows,
    lanes_for,
)

Pair = tuple[int, int]

#: Images whose windows an output sums up at a time, so that they stay in the nearest cache.
IMAGES = 2
#: Images that a thread takes at a time.
TOGETHER = 4
#: Numbers that 32 bits can count, and those of which float32 has every one.
MOST, MOST_IN_PLANE = 2**31, 2**24
#: The numbers of a row of which sums are made at a time.
PIECE = MOST_WHOLE * WHOLE


@compiled
def _add(total, at, step, source, start, stride, span, places, factors, rows, row):
    """Add multiples of rows of a source to rows of a total, as `add_rows` has it."""
    for begin in range(0, row, PIECE):
        add_rows(
            total,
            np.int64(at + begin),
            np.int64(step),
            source,
            np.int64(start + begin),
            np.int64(stride),
            span,
            places,
            factors,
            np.int64(rows),
            np.int64(min(row - begin, PIECE)),
        )


@part
def _weight(gradient, places, x, total, of_bias, shape, line, first, last):
    """Gradients of the weights and biases of the outputs from `first` up to before `last`.

    `gradient` and `places` are images x windows x outputs, and say where in x the windows lie.
    """
    images, windows, _ = gradient.shape
    rows, row, pitch, some = shape
    factors = np.empty(IMAGES * windows, np.float32)
    chosen = np.empty(IMAGES * windows, np.int32)
    for begin in range(0, images, IMAGES):
        for o in range(first, last):
            found, summed = 0, np.float64(0)
            for n in range(begin, min(begin + IMAGES, images)):
                for window in range(windows):
                    if gradient[n, window, o] != 0:
                        factors[found] = gradient[n, window, o]
                        chosen[found] = places[n, window, o]
                        summed += factors[found]
                        found += 1
            of_bias[o] += summed
            span = np.int64(0), np.int64(found)
            for t in range(0, rows, some):
                at, count = (o * rows + t) * pitch, min(some, rows - t)
                _add(total, at, pitch, x, t * line, line, span, chosen, factors, count, row)


@part
def _bottom(gradient, places, weight, totals, shape, line, first, last):
    """The same of the bottom's images, of which each has a row of `totals`.

    Outputs that have their maximum in a window at one place are added together.
    """
    _, windows, outputs = gradient.shape
    rows, row, pitch, some = shape
    # The places in an image, and in the other two those of each, up to where it ends.
    seen, ends = np.empty(windows * outputs, np.int64), np.zeros(windows * outputs + 1, np.int64)
    factors, chosen = np.empty(windows * outputs, np.float32), np.empty(windows * outputs, np.int32)
    rest = np.empty(outputs, np.int64)
    for n in range(first, last):
        found = 0
        for window in range(windows):
            own = gradient[n, window], places[n, window]
            found = _sort(own, rest, seen, ends, found, factors, chosen, rows * pitch)
        image = n * line[1]
        for t in range(0, rows, some):
            count = min(some, rows - t)
            for k in range(found):
                at, span = seen[k] - image + t * line[0], (ends[k], ends[k + 1])
                _add(
                    totals[n],
                    at,
                    line[0],
                    weight,
                    t * pitch,
                    pitch,
                    span,
                    chosen,
                    factors,
                    count,
                    row,
                )


@part
def _turn(arguments, turn):
    """A share of the outputs' weights, or what belongs to some images."""
    gradient, places, x, along, of_bias, weight, totals, shape, line, shares = arguments
    if turn < shares:
        outputs = gradient.shape[2]
        first, last = outputs * turn // shares, outputs * (turn + 1) // shares
        _weight(gradient, places, x, along, of_bias, shape, line[0], first, last)
    else:
        first = (turn - shares) * TOGETHER
        last = min(first + TOGETHER, totals.shape[0])
        _bottom(gradient, places, weight, totals, shape, line, first, last)


@compiled
def _gradients(threads, arguments):
    """Images come last, for they take so little that threads end together."""
    shares, images = min(threads[1], arguments[0].shape[2]), arguments[6].shape[0]
    turns = shares + -(-images // TOGETHER)
    return in_turns(threads, turns, _turn, (*arguments, shares))


@part
def _sort(own, rest, seen, ends, found, factors, chosen, step):
    """Add a window's gradients and where their weights are, one place of maxima after the other.

    Without a jump for each, which a processor would guess wrong. Returns how many places there are.
    """
    gradient, places = own
    count = np.uint64(0)
    for o in range(gradient.size):
        rest[count] = o
        count += np.uint64(gradient[np.uint64(o)] != 0)
    end = np.uint64(ends[found])
    while count > 0:
        place, left = places[np.uint64(rest[0])], np.uint64(0)
        for i in range(count):
            o = np.uint64(rest[np.uint64(i)])
            factors[end], chosen[end] = gradient[o], o * np.uint64(step)
            here = places[o] == place
            rest[left] = o
            end += np.uint64(here)
            left += np.uint64(not here)
        seen[found] = place
        found += 1
        ends[found] = end
        count = left
    return found


def gradients(
    gradient: Tensor, places: Tensor, x: Tensor, w: Tensor, *, below: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of x, if `below`, w and a bias, from that of the maxima of their convolution.

    `places` says where in x the window of each maximum begins, counted in numbers, as int32; there
    is no padding. All are channels_last, x with fewer than MOST numbers. The bits do not depend on
    the number of threads.
    """
    images, outputs, channels, rows = len(x), len(w), w.shape[1], w.shape[2]
    row, line = w.shape[3] * channels, x.shape[3] * channels
    size = x.shape[2] * line
    values, where = _by_windows(gradient), _by_windows(places)
    exact = lanes_for(row) == row
    pitch = row if exact else -(-row // LANES) * LANES
    pixels = (_flat(x) if exact else F.pad(_flat(x), (0, LANES))).numpy()
    weight = (
        _flat(w) if exact else F.pad(_flat(w).view(-1, row), (0, pitch - row)).view(-1)
    ).numpy()
    along = np.zeros((outputs, rows, pitch), np.float32)
    totals = np.zeros((images if below else 0, size + (0 if exact else LANES)), np.float32)
    of_bias = np.zeros(outputs)
    shape = rows, row, pitch, MOST_ROWS if row <= WHOLE else 1
    blobs = values, where, pixels, along.reshape(-1), of_bias, weight, totals
    finish(_gradients(team(), (*blobs, shape, (line, size))))
    return (
        _like(x, totals[:, :size]) if below else None,
        _like(w, along[:, :, :row]),
        torch.from_numpy(of_bias).to(w.dtype),
    )


def places_of(maxima: Tensor, shape: Sequence[int], stride: Pair, width: int) -> Tensor:
    """Where in images of this shape, channels_last, the windows begin whose sums are these maxima.

    `maxima` says where in the planes of the convolution's top, of this width, they are: with fewer
    than MOST_IN_PLANE numbers.
    """
    line, across = shape[3] * shape[1], stride[1] * shape[1]
    # Exact below MOST_IN_PLANE, and ten times as fast as a division of integers.
    in_rows = (maxima.float() / width).int()
    places = (maxima.int() * across).add_(in_rows, alpha=stride[0] * line - width * across)
    images = torch.arange(shape[0], dtype=torch.int32) * (shape[2] * line)
    return places.add_(images.view(-1, 1, 1, 1))


def _by_windows(blob: Tensor) -> np.ndarray:
    """Images x windows x channels."""
    blob = blob.contiguous(memory_format=torch.channels_last)
    return blob.permute(0, 2, 3, 1).flatten(1, 2).numpy()


def _flat(blob: Tensor) -> Tensor:
    """The numbers in memory, which lie there with the channels innermost."""
    return blob.detach().permute(0, 2, 3, 1).reshape(-1)


def _like(blob: Tensor, numbers: np.ndarray) -> Tensor:
    """A blob that lies as another does, with these numbers."""
    return torch.from_numpy(np.ascontiguousarray(numbers)).as_strided(blob.shape, blob.stride())
