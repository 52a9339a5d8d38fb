"""The operations of a program, compiled: each reads one buffer and writes another.

A buffer holds some images, channel by channel: a channel's plane has `pitch` places to a row, and
each place has a value for each of `n` images. So whatever the number of images, the innermost loop
runs over contiguous values. What a row contains beyond its width has no meaning. Planes are made
from the first to the last: what a vector writes beyond its plane is overwritten by the next.

Every function takes the two buffers, the operation's row of the table and n.
"""

from __future__ import annotations

import numba
import numpy as np

from caffe_dns.kernels.on_cpu.machine_code import compiled
from caffe_dns.kernels.on_cpu.vectors import (
    KERNELS,
    LANES,
    MOST_STRIDE,
    MOST_VECTORS,
    TAKEN,
    add_products,
    pointer,
    take_largest,
    take_some,
)

LOWEST = np.finfo(np.float32).min

# The columns of the table.
KIND, CHANNELS, HEIGHT, WIDTH, PITCH, PLANE = range(6)
OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH, OUT_PITCH, OUT_PLANE = range(6, 11)
STRIDE_H, STRIDE_W, KERNEL_H, KERNEL_W, PAD_H, PAD_W, RELU, FIRST, PIECES, COPIES = range(11, 21)
COLUMNS = 21
# The operations.
SUMS, SPLIT, MAX, AVERAGE, LINE, SOFTMAX = range(6)


# Loops stand where NumPy has assignments to slices, of which each takes a second to compile.
@compiled
def _fill(target, first, last, value):
    for i in range(first, last):
        target[np.uint64(i)] = value


@compiled
def _rectify(top):
    for i in range(top.size):
        value = top[i]
        top[i] = np.float32(0) if value < 0 else value  # NaN stays NaN


@compiled
def _one_sum(source, bias, begin, last, places, weights):
    """The bias and the products of a number of the top that is alone in its plane."""
    a, b, c, d = bias, np.float32(0), np.float32(0), np.float32(0)
    j = np.uint64(begin)
    one, four, end = np.uint64(1), np.uint64(4), np.uint64(last)  # no unsigned index is below 0
    while j + four <= end:
        a += weights[j] * source[np.uint64(places[j])]
        b += weights[j + one] * source[np.uint64(places[j + one])]
        c += weights[j + np.uint64(2)] * source[np.uint64(places[j + np.uint64(2)])]
        d += weights[j + np.uint64(3)] * source[np.uint64(places[j + np.uint64(3)])]
        j += four
    while j < end:
        a += weights[j] * source[np.uint64(places[j])]
        j += one
    return (a + b) + (c + d)


@compiled
def _sums(source, target, row, n, pointers, places, weights, biases):
    """Each plane of the top: the bias, and planes of the bottom, shifted, times the weights.

    The rows of both planes are equally far apart, so that a plane is one row. Of all planes the
    same numbers are worked on at a time, and of what they read one of PIECES after the other, which
    then stays in a near cache.
    """
    length = ((row[OUT_HEIGHT] - 1) * row[OUT_PITCH] + row[OUT_WIDTH]) * n
    channels, plane, pieces = row[OUT_CHANNELS], row[OUT_PLANE] * n, row[PIECES]
    if length == 1:
        for channel in range(channels):
            number = row[FIRST] + channel
            begin, last = pointers[number], pointers[number + 1]
            value = _one_sum(source, biases[number], begin, last, places, weights)
            target[channel] = np.float32(0) if row[RELU] and value < 0 else value
        return
    at = 0
    while at < length:
        vectors = min(MOST_VECTORS, (length - at + LANES - 1) // LANES)
        # Some numbers are made twice: here, or in what the next channel overwrites.
        start = max(0, min(at, plane - vectors * LANES))
        for piece in range(pieces):
            for channel in range(channels):
                number = row[FIRST] + piece * channels + channel
                add_products(
                    target,
                    channel * plane + start,
                    source,
                    start,
                    n,
                    (pointers[number], pointers[number + 1]),
                    piece > 0,
                    places,
                    weights,
                    biases[number],
                    row[RELU] != 0 and piece == pieces - 1,
                    vectors,
                )
        at = start + vectors * LANES


@compiled
def _split(source, target, row, n):
    """The planes with zeros around them, and split: one of every STRIDE-th row and column.

    Each comes in COPIES, the second without the first column, and so on.
    """
    padded, stride_h, stride_w = row[PAD_H] + row[PAD_W] > 0, row[STRIDE_H], row[STRIDE_W]
    columns, rest = row[WIDTH] // stride_w, row[WIDTH] % stride_w
    plane, size = 0, row[OUT_PLANE]
    for channel in range(row[CHANNELS]):
        for part_h in range(stride_h):
            for part_w in range(stride_w):
                x, left = part_w - row[PAD_W], 0
                while x < 0:
                    x, left = x + stride_w, left + 1
                count, b = columns + (x < rest), plane + left
                if padded:
                    _fill(target, plane * n, (plane + size) * n, np.float32(0))
                for y in range(part_h - row[PAD_H], row[HEIGHT], stride_h):
                    if y >= 0:
                        a = channel * row[PLANE] + y * row[PITCH] + x
                        _take_each(source, target, a, b, stride_w, count, n, padded)
                    b += row[OUT_PITCH]
                for copy in range(1, row[COPIES]):
                    a, b = plane + copy, plane + copy * size
                    _take_each(target, target, a, b, 1, size - copy, n, False)
                plane += row[COPIES] * size


@compiled
def _take_each(source, target, a, b, stride, count, n, exact):
    """Every stride-th place of a row; unless `exact`, also what a vector has beyond it."""
    done = 0
    if n == 1 and stride <= MOST_STRIDE:
        last = count // TAKEN * TAKEN if exact else count
        while done < last:
            take_some(target, b + done, source, a + done * stride, stride)
            done += TAKEN
    for i in range(done, count):
        c, d = (b + i) * n, (a + i * stride) * n
        for k in range(n):
            target[np.uint64(c + k)] = source[np.uint64(d + k)]


@compiled
def _pool(source, target, row, n, average):
    """Maxima or averages of windows, clipped to the image and its padding as Caffe does."""
    if not average and _whole(row, n):
        _take_maxima(source, target, row, n)
        return
    stride, pad = row[STRIDE_W], row[PAD_W]
    lowest = np.float32(0) if average else LOWEST
    _fill(target, 0, row[OUT_CHANNELS] * row[OUT_PLANE] * n, lowest)
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


@compiled
def _whole(row, n):
    """Whether windows are of those that `take_largest` knows, and none is clipped."""
    kernel = row[KERNEL_H]
    known = (kernel == KERNELS[0] or kernel == KERNELS[1]) and row[KERNEL_W] == kernel
    down = (row[OUT_HEIGHT] - 1) * row[STRIDE_H] + kernel <= row[HEIGHT]
    across = (row[OUT_WIDTH] - 1) * row[STRIDE_W] + kernel <= row[WIDTH]
    return (
        known and row[PAD_H] + row[PAD_W] == 0 and down and across and (n > 1 or row[STRIDE_W] <= 2)
    )


@compiled
def _take_maxima(source, target, row, n):
    """Some windows of a row at a time, or one in some images; vectors may go beyond the last."""
    width, stride = row[OUT_WIDTH], row[STRIDE_W]
    for channel in range(row[CHANNELS]):
        for y in range(row[OUT_HEIGHT]):
            top = (channel * row[OUT_PLANE] + y * row[OUT_PITCH]) * n
            bottom = (channel * row[PLANE] + y * row[STRIDE_H] * row[PITCH]) * n
            down = row[PITCH] * n
            if n == 1:
                for x in range(0, width, TAKEN):
                    a = bottom + x * stride
                    take_largest(target, top + x, source, a, n, down, row[KERNEL_H], stride)
                continue
            for x in range(width):
                for i in range(0, n, TAKEN):
                    a, b = bottom + x * stride * n + i, top + x * n + i
                    take_largest(target, b, source, a, n, down, row[KERNEL_H], 1)


@compiled
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


@compiled
def _divide_by_areas(target, row, n):
    for y in range(row[OUT_HEIGHT]):
        top = y * row[STRIDE_H] - row[PAD_H]
        height = min(top + row[KERNEL_H], row[HEIGHT] + row[PAD_H]) - top
        for x in range(row[OUT_WIDTH]):
            left = x * row[STRIDE_W] - row[PAD_W]
            width = min(left + row[KERNEL_W], row[WIDTH] + row[PAD_W]) - left
            for channel in range(row[CHANNELS]):
                first = (channel * row[OUT_PLANE] + y * row[OUT_PITCH] + x) * n
                area = np.float32(height * width)
                for i in range(first, first + n):
                    target[i] /= area


@compiled
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


@compiled
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


@compiled
def _take_in(images, target, n):
    """N x C x H x W images as a buffer."""
    size = images.size // n
    if n == 1:
        for place in range(size):
            target[np.uint64(place)] = images[np.uint64(place)]
        return
    for place in range(size):
        for image in range(n):
            target[np.uint64(place * n + image)] = images[np.uint64(image * size + place)]


@compiled
def _give_out(source, tops, row, n):
    at, width = 0, row[OUT_WIDTH]
    for image in range(n):
        for channel in range(row[OUT_CHANNELS]):
            for y in range(row[OUT_HEIGHT]):
                place = channel * row[OUT_PLANE] + y * row[OUT_PITCH]
                if n == 1:
                    for x in range(width):
                        tops[np.uint64(at + x)] = source[np.uint64(place + x)]
                else:
                    for x in range(width):
                        tops[at + x] = source[(place + x) * n + image]
                at += width


@compiled
def run(arrays, buffers, images, tops, n):
    """All operations of a program on n images, as many as its buffers hold.

    All but n are addresses, which reach compiled code in a fraction of the time that arrays take:
    of the addresses and sizes of what `Program` keeps, of two buffers, and of images and tops, N x
    C x H x W.
    """
    kept = numba.carray(pointer(arrays, np.int64(0)), 11)
    table = numba.carray(pointer(kept[0], np.int64(0)), (kept[1] // COLUMNS, COLUMNS))
    pointers = numba.carray(pointer(kept[2], np.int64(0)), kept[3])
    places = numba.carray(pointer(kept[4], np.int32(0)), kept[5])
    weights = numba.carray(pointer(kept[6], np.float32(0)), kept[7])
    biases = numba.carray(pointer(kept[8], np.float32(0)), kept[9])
    first, last = table[0], table[-1]
    bottom = numba.carray(pointer(images, np.float32(0)), n * first[CHANNELS] * first[PLANE])
    size = last[OUT_CHANNELS] * last[OUT_HEIGHT] * last[OUT_WIDTH]
    both = numba.carray(pointer(buffers, np.float32(0)), (2, kept[10]))
    _take_in(bottom, both[0], n)
    source = both[0]
    for number in range(table.shape[0]):
        row, target = table[number], both[1 - number % 2]
        kind = row[KIND]
        if kind == SUMS:
            _sums(source, target, row, n, pointers, places, weights, biases)
        elif kind == SPLIT:
            _split(source, target, row, n)
        elif kind == LINE:
            _line(source, target, row, n, pointers, weights, biases)
        elif kind == SOFTMAX:
            _softmax(source, target, row, n)
        else:
            _pool(source, target, row, n, kind == AVERAGE)
        source = target
    _give_out(source, numba.carray(pointer(tops, np.float32(0)), n * size), last, n)
