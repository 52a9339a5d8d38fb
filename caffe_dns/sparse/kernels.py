"""What a program does, compiled: each operation reads one buffer and writes another.

A buffer holds some images, channel by channel: a channel's plane has `pitch` places to a row, and a
place has a number for each of `n` images. So whatever the number of images, the innermost loop goes
over numbers that lie side by side. What lies in a row beyond its width has no meaning.

Every function takes the two buffers, the operation's row of the table and n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba import extending
from numba.core import cgutils

#: A function that says what LLVM is to make of a call. Callers leave out the first argument.
intrinsic: Any = extending.intrinsic
#: Numbers in a vector, and the most vectors of sums made at a time: as many as registers hold.
LANES, MOST_VECTORS = 16, 4
VECTOR = ir.VectorType(ir.FloatType(), LANES)
INT32 = ir.IntType(32)
LOWEST = np.finfo(np.float32).min

# The columns of the table.
KIND, CHANNELS, HEIGHT, WIDTH, PITCH, PLANE = range(6)
OUT_CHANNELS, OUT_HEIGHT, OUT_WIDTH, OUT_PITCH, OUT_PLANE = range(6, 11)
STRIDE_H, STRIDE_W, KERNEL_H, KERNEL_W, PAD_H, PAD_W, RELU, FIRST, PARTS = range(11, 20)
COLUMNS = 20
# The operations.
SUMS, SPLIT, MAX, AVERAGE, LINE, SOFTMAX = range(6)

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
def _one_sum(source, bias, begin, last, places, weights, n, at):
    """The bias and the products of one number of the top."""
    a, b, c, d = bias, np.float32(0), np.float32(0), np.float32(0)
    j = begin
    while j + 4 <= last:
        a += weights[j] * source[places[j] * n + at]
        b += weights[j + 1] * source[places[j + 1] * n + at]
        c += weights[j + 2] * source[places[j + 2] * n + at]
        d += weights[j + 3] * source[places[j + 3] * n + at]
        j += 4
    while j < last:
        a += weights[j] * source[places[j] * n + at]
        j += 1
    return (a + b) + (c + d)


@intrinsic
def _largest_sums(
    typing, target, at, source, start, n, sums, pointers, places, weights, biases, relu, vectors
):
    """At `at` of the target, so many vectors of the largest of some sums, a range of their numbers.

    Each is a bias and numbers times weights: weight j times those from places[j] * n + start of the
    source on. They stay in registers, where no loop over arrays would keep them.
    """
    signature = numba.void(
        target, at, source, start, n, sums, pointers, places, weights, biases, relu, vectors
    )

    def generate(context, builder, signature, args):
        def data(number):
            return context.make_array(signature.args[number])(context, builder, args[number]).data

        target, source, pointers, places, weights, biases = map(data, (0, 2, 6, 7, 8, 9))
        at, start, n, relu, vectors = (args[number] for number in (1, 3, 4, 10, 11))
        first, last = cgutils.unpack_tuple(builder, args[5])
        done = builder.append_basic_block()
        switch = builder.switch(vectors, done)
        for count in range(1, MOST_VECTORS + 1):
            case = builder.append_basic_block()
            switch.add_case(count, case)
            with builder.goto_block(case):
                largest = _variables(builder, count, ir.Constant(VECTOR, [-math.inf] * LANES))
                with cgutils.for_range_slice(builder, first, last, first.type(1)) as (number, _):
                    totals = _variables(builder, count, _spread(builder, biases, number))
                    begin, end = (
                        builder.load(builder.gep(pointers, [builder.add(number, number.type(k))]))
                        for k in (0, 1)
                    )
                    with cgutils.for_range_slice(builder, begin, end, begin.type(1)) as (j, _):
                        place = builder.sext(builder.load(builder.gep(places, [j])), n.type)
                        here = builder.add(builder.mul(place, n), start)
                        _add_products(builder, totals, _spread(builder, weights, j), source, here)
                    _keep_larger(builder, largest, totals)
                _store(builder, largest, relu, target, at)
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, generate


def _variables(builder, count, value):
    """So many vectors, in registers once LLVM has seen to it."""
    variables = [cgutils.alloca_once(builder, VECTOR) for _ in range(count)]
    for variable in variables:
        builder.store(value, variable)
    return variables


def _spread(builder, numbers, at):
    """A vector of one number of an array."""
    number = builder.load(builder.gep(numbers, [at]))
    vector = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, INT32(0))
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(INT32, LANES), None))


def _vector_at(builder, numbers, at, k):
    place = builder.gep(numbers, [builder.add(at, at.type(k * LANES))])
    return builder.bitcast(place, VECTOR.as_pointer())


def _add_products(builder, totals, weight, source, at):
    for k, total in enumerate(totals):
        numbers = builder.load(_vector_at(builder, source, at, k), align=4)
        product = builder.fmul(weight, numbers, flags=("contract",))
        builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)


def _keep_larger(builder, largest, totals):
    for most, total in zip(largest, totals, strict=True):
        before, value = builder.load(most), builder.load(total)
        larger = builder.select(builder.fcmp_ordered(">", value, before), value, before)
        nan = builder.fcmp_unordered("uno", value, value)  # which wins, as in PyTorch
        builder.store(builder.select(nan, value, larger), most)


def _store(builder, vectors, relu, target, at):
    zero = ir.Constant(VECTOR, None)
    for k, vector in enumerate(vectors):
        value = builder.load(vector)
        rectified = builder.select(builder.fcmp_ordered("<", value, zero), zero, value)
        value = builder.select(relu, rectified, value)
        builder.store(value, _vector_at(builder, target, at, k), align=4)


@intrinsic
def _at(typing, address, item):
    """A pointer to numbers of the type of `item` at an address."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return numba.types.CPointer(item)(address, item), generate


@_compiled
def _sums(source, target, row, n, pointers, places, weights, biases):
    """Each plane of the top: the bias, and planes of the bottom, shifted, times the weights.

    Of PARTS such sums the largest counts. The rows of both planes are equally far apart, so that a
    plane is one row. Of all planes the same numbers are worked on at a time: what they read of the
    bottom then stays in a near cache.
    """
    length = ((row[OUT_HEIGHT] - 1) * row[OUT_PITCH] + row[OUT_WIDTH]) * n
    plane, parts, relu = row[OUT_PLANE] * n, row[PARTS], row[RELU] != 0
    at = 0
    while at < length:
        vectors = min(MOST_VECTORS, (length - at + LANES - 1) // LANES, length // LANES)
        if vectors == 0:
            break
        start = min(at, length - vectors * LANES)  # some sums are made twice rather than singly
        for channel in range(row[OUT_CHANNELS]):
            first = row[FIRST] + channel * parts
            _largest_sums(
                target,
                channel * plane + start,
                source,
                start,
                n,
                (first, first + parts),
                pointers,
                places,
                weights,
                biases,
                relu,
                vectors,
            )
        at = start + vectors * LANES
    for channel in range(row[OUT_CHANNELS]):
        first = row[FIRST] + channel * parts
        for i in range(at, length):
            for sums in range(first, first + parts):
                value = _one_sum(
                    source, biases[sums], pointers[sums], pointers[sums + 1], places, weights, n, i
                )
                value = np.float32(0) if relu and value < 0 else value
                before = target[channel * plane + i]
                if sums == first or value > before or value != value:
                    target[channel * plane + i] = value


@_compiled
def _split(source, target, row, n):
    """The planes with zeros around them, and split: one of every STRIDE-th row and column."""
    target[: row[OUT_CHANNELS] * row[OUT_PLANE] * n] = 0
    stride_h, stride_w = row[STRIDE_H], row[STRIDE_W]
    for part in range(stride_h * stride_w):
        y = (part // stride_w - row[PAD_H]) % stride_h
        x = (part % stride_w - row[PAD_W]) % stride_w
        first = (y + row[PAD_H]) // stride_h * row[OUT_PITCH] + (x + row[PAD_W]) // stride_w
        rows = (row[HEIGHT] - y + stride_h - 1) // stride_h
        columns = (row[WIDTH] - x + stride_w - 1) // stride_w
        for channel in range(row[CHANNELS]):
            a = (channel * row[PLANE] + y * row[PITCH] + x) * n
            b = ((channel * stride_h * stride_w + part) * row[OUT_PLANE] + first) * n
            for _ in range(rows):
                _take_each(source, target, a, b, stride_w, columns, n)
                a += stride_h * row[PITCH] * n
                b += row[OUT_PITCH] * n


@_compiled
def _take_each(source, target, a, b, stride, count, n):
    """Every stride-th place of a row; a loop for single numbers, another for many."""
    if n == 1:
        for i in range(count):
            target[np.uint64(b + i)] = source[np.uint64(a + i * stride)]
        return
    for i in range(count):
        c, d = b + i * n, a + i * stride * n
        for k in range(n):
            target[np.uint64(c + k)] = source[np.uint64(d + k)]


@_compiled
def _pool(source, target, row, n, average):
    """Maxima or averages of windows, clipped to the image and its padding as Caffe does."""
    stride, pad = row[STRIDE_W], row[PAD_W]
    target[: row[OUT_CHANNELS] * row[OUT_PLANE] * n] = np.float32(0) if average else LOWEST
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
def _take_in(images, target, n):
    """N x C x H x W images as a buffer."""
    size = images.size // n
    for image in range(n):
        for place in range(size):
            target[place * n + image] = images[image * size + place]


@_compiled
def _give_out(source, tops, row, n):
    at = 0
    for image in range(n):
        for channel in range(row[OUT_CHANNELS]):
            for y in range(row[OUT_HEIGHT]):
                place = channel * row[OUT_PLANE] + y * row[OUT_PITCH]
                for x in range(row[OUT_WIDTH]):
                    tops[at] = source[(place + x) * n + image]
                    at += 1


@_compiled
def run(table, pointers, places, weights, biases, buffers, images, tops, n):
    """All operations on n images, as many as fit into the buffers.

    Images and tops, N x C x H x W, are given by their addresses, which reach compiled code in a
    fraction of the time that arrays take.
    """
    first, last = table[0], table[-1]
    size, top = (
        first[CHANNELS] * first[PLANE],
        last[OUT_CHANNELS] * last[OUT_HEIGHT] * last[OUT_WIDTH],
    )
    source = numba.carray(_at(images, np.float32(0)), n * size)
    if n > 1:
        _take_in(source, buffers[0], n)
        source = buffers[0]
    for number in range(table.shape[0]):
        row, target = table[number], buffers[1 - number % 2]
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
    _give_out(source, numba.carray(_at(tops, np.float32(0)), n * top), last, n)
