"""What a program does, compiled: each operation reads one buffer and writes another.

A buffer holds some images, channel by channel: a channel's plane has `pitch` places to a row, and a
place has a number for each of `n` images. So whatever the number of images, the innermost loop goes
over numbers that lie side by side. What lies in a row beyond its width has no meaning.

Every function takes the two buffers, the operation's row of the table and n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

#: How many numbers of a top are worked on at a time: they and what is added stay in a near cache.
CHUNK = 1024

# The columns of the table.
KIND, CHANNELS, HEIGHT, WIDTH, PITCH, PLANE = range(6)
OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH, OUT_PITCH, OUT_PLANE = range(6, 11)
STRIDE_H, STRIDE_W, KERNEL_H, KERNEL_W, PAD_H, PAD_W, RELU, FIRST = range(11, 19)
COLUMNS = 19
# The operations.
SUMS, STRIDED_SUMS, PAD, MAX, AVERAGE, LINE, SOFTMAX = range(7)

Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    """The function, compiled when it is first called; the machine code is kept."""
    # Additions keep their order; a multiplication and an addition may be one instruction.
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that can be written
        return numba.njit(**options)(function)


@_compiled
def _rectify(top):
    for i in range(top.size):
        value = top[i]
        top[i] = np.float32(0) if value < 0 else value  # NaN stays NaN


@_compiled
def _one_sum(source, bias, begin, last, places, weights):
    """The bias and the products of one number of the top; of images there is one."""
    a, b, c, d = bias, np.float32(0), np.float32(0), np.float32(0)
    j = begin
    while j + 4 <= last:
        a += weights[j] * source[places[j]]
        b += weights[j + 1] * source[places[j + 1]]
        c += weights[j + 2] * source[places[j + 2]]
        d += weights[j + 3] * source[places[j + 3]]
        j += 4
    while j < last:
        a += weights[j] * source[places[j]]
        j += 1
    return (a + b) + (c + d)


@_compiled
def _sums(source, target, row, n, pointers, places, weights, biases):
    """Each plane of the top: the bias, and planes of the bottom, shifted, times the weights.

    For a stride of 1 the rows of both planes are equally far apart, so that a plane is one row.
    """
    length = ((row[OUT_HEIGHT] - 1) * row[OUT_PITCH] + row[OUT_WIDTH]) * n
    for channel in range(row[OUT_CHANNELS]):
        first = row[FIRST] + channel
        begin, last, bias = pointers[first], pointers[first + 1], biases[first]
        base = channel * row[OUT_PLANE] * n
        for start in range(0, length, CHUNK):
            size = min(CHUNK, length - start)
            top = target[base + start : base + start + size]
            top[:] = bias
            if length == 1:
                top[0] = _one_sum(source, bias, begin, last, places, weights)
                begin = last
            j = begin
            while j + 4 <= last:
                a, b = places[j] * n + start, places[j + 1] * n + start
                c, d = places[j + 2] * n + start, places[j + 3] * n + start
                xa, xb = source[a : a + size], source[b : b + size]
                xc, xd = source[c : c + size], source[d : d + size]
                wa, wb, wc, wd = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
                for i in range(size):
                    top[i] += wa * xa[i] + wb * xb[i] + wc * xc[i] + wd * xd[i]
                j += 4
            while j < last:
                a, wa = places[j] * n + start, weights[j]
                xa = source[a : a + size]
                for i in range(size):
                    top[i] += wa * xa[i]
                j += 1
            if row[RELU]:
                _rectify(top)


@_compiled
def _strided_sums(source, target, row, n, pointers, places, weights, biases):
    """The same for other strides: row by row, place by place."""
    width, step = row[OUT_WIDTH], row[STRIDE_W] * n
    for channel in range(row[OUT_CHANNELS]):
        begin, last = pointers[row[FIRST] + channel], pointers[row[FIRST] + channel + 1]
        bias = biases[row[FIRST] + channel]
        for y in range(row[OUT_HEIGHT]):
            base = (channel * row[OUT_PLANE] + y * row[OUT_PITCH]) * n
            top = target[base : base + width * n]
            top[:] = bias
            shift = y * row[STRIDE_H] * row[PITCH]
            for j in range(begin, last):
                first, weight = (places[j] + shift) * n, weights[j]
                bottom = source[first : first + (width - 1) * step + n]
                if n == 1:
                    for x in range(width):
                        top[x] += weight * bottom[x * step]
                else:
                    for x in range(width):
                        for i in range(n):
                            top[x * n + i] += weight * bottom[x * step + i]
            if row[RELU]:
                _rectify(top)


@_compiled
def _pad(source, target, row, n):
    """The planes with zeros around them."""
    target[: row[OUT_CHANNELS] * row[OUT_PLANE] * n] = 0
    size = row[WIDTH] * n
    for channel in range(row[CHANNELS]):
        for y in range(row[HEIGHT]):
            a = (channel * row[PLANE] + y * row[PITCH]) * n
            b = channel * row[OUT_PLANE] + (y + row[PAD_H]) * row[OUT_PITCH] + row[PAD_W]
            target[b * n : b * n + size] = source[a : a + size]


@_compiled
def _pool(source, target, row, n, average, lowest):
    """Maxima or averages of windows, clipped to the image and its padding as Caffe does."""
    stride, pad = row[STRIDE_W], row[PAD_W]
    target[: row[OUT_CHANNELS] * row[OUT_PLANE] * n] = np.float32(0) if average else lowest
    for j in range(row[KERNEL_W]):
        # Of these windows, column j lies in the image.
        left = max(0, (pad - j + stride - 1) // stride)
        right = min(row[OUT_WIDTH], (row[WIDTH] - 1 + pad - j) // stride + 1)
        for channel in range(row[CHANNELS]):
            for y in range(row[OUT_HEIGHT]):
                top = channel * row[OUT_PLANE] + y * row[OUT_PITCH] + left
                first = y * row[STRIDE_H] - row[PAD_H]
                last = min(first + row[KERNEL_H], row[HEIGHT])
                for i in range(max(first, 0), last):
                    bottom = channel * row[PLANE] + i * row[PITCH] + left * stride + j - pad
                    _take(source, target, bottom, top, stride, right - left, n, average)
    if average:
        _divide_by_areas(target, row, n)


@_compiled
def _take(source, target, bottom, top, stride, count, n, average):
    """One number of each of some windows in a row into its sum or its maximum."""
    if n == 1:
        for x in range(count):
            value, before = source[bottom + x * stride], target[top + x]
            if average:
                target[top + x] = before + value
            else:  # NaN wins, as in PyTorch
                target[top + x] = value if value > before or value != value else before
        return
    for x in range(count):
        numbers = source[(bottom + x * stride) * n : (bottom + x * stride + 1) * n]
        many = target[(top + x) * n : (top + x + 1) * n]
        if average:
            for k in range(n):
                many[k] += numbers[k]
        else:
            for k in range(n):
                value = numbers[k]
                many[k] = value if value > many[k] or value != value else many[k]


@_compiled
def _divide_by_areas(target, row, n):
    for y in range(row[OUT_HEIGHT]):
        top = y * row[STRIDE_H] - row[PAD_H]
        height = min(top + row[KERNEL_H], row[HEIGHT] + row[PAD_H]) - top
        for x in range(row[OUT_WIDTH]):
            left = x * row[STRIDE_W] - row[PAD_W]
            width = min(left + row[KERNEL_W], row[WIDTH] + row[PAD_W]) - left
            for channel in range(row[CHANNELS]):
                first = (channel * row[OUT_PLANE] + y * row[OUT_PITCH] + x) * n
                target[first : first + n] /= np.float32(height * width)


@_compiled
def _line(source, target, row, n, pointers, weights, biases):
    """Each plane times a number, plus another."""
    size = row[PLANE] * n
    for channel in range(row[CHANNELS]):
        weight, bias = weights[pointers[row[FIRST] + channel]], biases[row[FIRST] + channel]
        bottom = source[channel * size : (channel + 1) * size]
        top = target[channel * size : (channel + 1) * size]
        for i in range(size):
            top[i] = bottom[i] * weight + bias
        if row[RELU]:
            _rectify(top)


@_compiled
def _softmax(source, target, row, n):
    """Over the channels, at each place."""
    step = row[PLANE] * n
    for i in range(step):
        largest = source[i]
        for channel in range(1, row[CHANNELS]):
            largest = max(largest, source[channel * step + i])
        total = np.float32(0)
        for channel in range(row[CHANNELS]):
            value = np.exp(source[channel * step + i] - largest)
            target[channel * step + i] = value
            total += value
        for channel in range(row[CHANNELS]):
            target[channel * step + i] /= total


@_compiled
def _take_in(images, target, row):
    """N x C x H x W images as a buffer."""
    n, plane = images.shape[0], row[PLANE]
    for image in range(n):
        for place in range(row[CHANNELS] * plane):
            target[place * n + image] = images[image, place]


@_compiled
def _give_out(source, tops, row):
    n, width = tops.shape[0], row[OUT_WIDTH]
    for image in range(n):
        at = 0
        for channel in range(row[OUT_CHANNELS]):
            for y in range(row[OUT_HEIGHT]):
                place = channel * row[OUT_PLANE] + y * row[OUT_PITCH]
                for x in range(width):
                    tops[image, at] = source[(place + x) * n + image]
                    at += 1


@_compiled
def run(table, pointers, places, weights, biases, images, tops, buffers, lowest):
    """All operations, on images that fit into the buffers; a row of each array is an image."""
    n = images.shape[0]
    source, target = buffers[0], buffers[1]
    _take_in(images, source, table[0])
    for number in range(table.shape[0]):
        row = table[number]
        kind = row[KIND]
        if kind == SUMS:
            _sums(source, target, row, n, pointers, places, weights, biases)
        elif kind == STRIDED_SUMS:
            _strided_sums(source, target, row, n, pointers, places, weights, biases)
        elif kind == PAD:
            _pad(source, target, row, n)
        elif kind == LINE:
            _line(source, target, row, n, pointers, weights, biases)
        elif kind == SOFTMAX:
            _softmax(source, target, row, n)
        else:
            _pool(source, target, row, n, kind == AVERAGE, lowest)
        source, target = target, source
    _give_out(source, tops, table[table.shape[0] - 1])
