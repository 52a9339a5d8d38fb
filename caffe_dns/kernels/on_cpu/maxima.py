"""The maxima of a convolution's top in 2 x 2 windows, on a CPU, compiled by numba.

The four sums that a maximum is taken from stay in registers: the convolution's top is never
written. Images and weights are channels-last.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from caffe_dns.kernels.on_cpu.machine_code import compiled, part
from caffe_dns.kernels.on_cpu.threads import finish, in_turns, team
from caffe_dns.kernels.on_cpu.vectors import LANES
from caffe_dns.kernels.on_cpu.window_vectors import MOST_OUTPUTS, WHOLE, largest_sums

Pair = tuple[int, int]

#: Outputs of which the sums are made at a time.
BLOCK = MOST_OUTPUTS * WHOLE
#: The windows that maxima are taken from, and how far apart they are.
WINDOW = (2, 2)


@part
def _image(arguments, n):
    """The maxima of an image.

    The convolution's top has these extents; to the next of its windows, down and across, it is so
    far. A window has rows, numbers in each, and so many from one row to the next.
    """
    x, weights, biases, top, places, extents, across, window = arguments
    images, height, width, outputs = top.shape
    size, step = x.size // images, biases.size
    best, found = np.empty(step, np.float32), np.empty(step, np.int32)
    for i in range(height):
        upper = n * size + 2 * i * across[0]
        lower = n * size + min(2 * i + 1, extents[0] - 1) * across[0]
        for j in range(width):
            left = 2 * j * across[1]
            right = min(2 * j + 1, extents[1] - 1) * across[1]
            starts = (upper + left, upper + right, lower + left, lower + right)
            for begin in range(0, outputs, BLOCK):
                some = np.int64(begin), np.int64(min(BLOCK, outputs - begin)), np.int64(step)
                largest_sums(best, found, x, starts, window, weights, biases, some)
            for output in range(outputs):
                top[n, i, j, output] = best[output]
                places[n, i, j, output] = found[output]


@compiled
def _maxima(threads, images, arguments):
    return in_turns(threads, images, _image, arguments)


def maxima(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Pair, extents: Pair
) -> tuple[Tensor, Tensor]:
    """The maxima, and where in x the window of each begins, counted in numbers, as int32.

    Of a convolution without padding, whose top has these extents; where they are odd, the last
    windows are smaller. All are channels_last, of float32.
    """
    outputs, channels, rows, columns = w.shape
    step = -(-outputs // LANES) * LANES
    weights = torch.zeros(rows, columns, channels, step)
    weights[..., :outputs] = w.detach().permute(2, 3, 1, 0)
    biases = torch.zeros(step)
    if b is not None:
        biases[:outputs] = b.detach()
    line = x.shape[3] * channels
    size = (len(x), outputs, -(-extents[0] // 2), -(-extents[1] // 2))
    top = torch.empty(size, memory_format=torch.channels_last)
    places = torch.empty_like(top, dtype=torch.int32)
    tops, found = (blob.permute(0, 2, 3, 1).numpy() for blob in (top, places))
    pixels = x.detach().permute(0, 2, 3, 1).reshape(-1).numpy()
    across = stride[0] * line, stride[1] * channels
    table, added = weights.view(-1).numpy(), biases.numpy()

    window = rows, columns * channels, line
    finish(_maxima(team(), len(x), (pixels, table, added, tops, found, extents, across, window)))
    return top, places
