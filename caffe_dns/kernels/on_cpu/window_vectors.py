"""Sums over windows of channels-last images, written for LLVM in vectors.

A row of a window is contiguous. It is cut into whole vectors and a short one for the rest, so that
few lanes are idle. As many sums as possible stay in registers.

numba's cache of machine code depends on the code that uses this file, not on this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils

from caffe_dns.kernels.on_cpu.vectors import (
    CONTRACT,
    INT32,
    READS_LINES,
    cases,
    data_of,
    intrinsic,
    load,
    spread,
    vector_at,
)

#: Numbers in a whole vector, and in those that there are for a rest.
WHOLE, SHORT = (16, (4, 8)) if READS_LINES else (8, (4,))
#: The most whole vectors of a row whose sums are made at a time, and the most rows of up to one.
MOST_WHOLE, MOST_ROWS = (8, 6) if READS_LINES else (12, 6)
#: The most vectors of outputs of which the sums of PIXELS windows are made at a time.
MOST_OUTPUTS = 4 if READS_LINES else 3
#: The pixels that a maximum is taken from.
PIXELS = 4


def lanes_for(numbers: int) -> int:
    """The lanes of the vectors that so many numbers are cut into."""
    whole, rest = divmod(numbers, WHOLE)
    return whole * WHOLE + next(lanes for lanes in (0, *SHORT, WHOLE) if lanes >= rest)


def _all_lanes(vectors: int) -> list[int]:
    """What `lanes_for` gives for up to so many whole vectors of numbers."""
    return sorted({lanes_for(numbers) for numbers in range(1, vectors * WHOLE + 1)})


def _vectors(lanes: int) -> list[tuple[int, Any]]:
    """Where each vector of so many lanes begins, and its type."""
    lengths = [WHOLE] * (lanes // WHOLE) + [lanes % WHOLE] * (lanes % WHOLE > 0)
    return [(k * WHOLE, ir.VectorType(ir.FloatType(), n)) for k, n in enumerate(lengths)]


def _rounded(builder, numbers):
    """`lanes_for` at run time."""
    rest = builder.and_(numbers, numbers.type(WHOLE - 1))
    lanes = numbers.type(WHOLE)
    for short in (*reversed(SHORT), 0):
        fits = builder.icmp_signed("<=", rest, numbers.type(short))
        lanes = builder.select(fits, numbers.type(short), lanes)
    return builder.add(builder.sub(numbers, rest), lanes)


def _load_all(builder, numbers, at, vectors):
    """The vectors that lie from `at` on."""
    return [
        load(builder, numbers, builder.add(at, at.type(begin)), 0, vector)
        for begin, vector in vectors
    ]


def _multiply_and_add(builder, total, number, vector):
    product = builder.fmul(spread(builder, number, vector.type), vector, CONTRACT)
    builder.store(builder.fadd(builder.load(total), product, CONTRACT), total)


@intrinsic
def add_rows(typing, total, at, step, source, start, stride, span, places, factors, rows, numbers):
    """To so many numbers of rows of a total, those of a source, times each factor of a span.

    The first row is at `at` of the total, the next ones `step` apart. For factor j the source's
    first row is at places[j] + start, and its rows are `stride` apart. Beyond these numbers, the
    total keeps what it has. Of several rows, none is longer than WHOLE.
    """
    signature = numba.void(
        total, at, step, source, start, stride, span, places, factors, rows, numbers
    )

    def generate(context, builder, signature, args):
        total, source, places, factors = data_of(context, builder, signature, args, (0, 3, 7, 8))
        _, at, step, _, start, stride, span, _, _, rows, numbers = args
        begin, end = cgutils.unpack_tuple(builder, span)
        known = [(1, lanes) for lanes in _all_lanes(MOST_WHOLE)]
        known += [(n, lanes) for n in range(2, MOST_ROWS + 1) for lanes in _all_lanes(1)]
        # No two of these give the same number.
        case = builder.add(builder.shl(_rounded(builder, numbers), at.type(8)), rows)
        for chosen in cases(builder, case, [(lanes << 8) + n for n, lanes in known]):
            vectors = _vectors(chosen >> 8)
            steps = [(at.type(t), vectors) for t in range(chosen & 255)]
            own = [builder.add(at, builder.mul(step, t)) for t, _ in steps]
            before = [_load_all(builder, total, place, vectors) for place in own]
            sums = [[cgutils.alloca_once_value(builder, old) for old in row] for row in before]
            with cgutils.for_range_slice(builder, begin, end, begin.type(1)) as (j, _):
                number = builder.load(builder.gep(factors, [j]))
                place = builder.sext(builder.load(builder.gep(places, [j])), start.type)
                here = builder.add(place, start)
                for (t, _), row in zip(steps, sums, strict=True):
                    there = builder.add(here, builder.mul(stride, t))
                    found = _load_all(builder, source, there, vectors)
                    for summed, vector in zip(row, found, strict=True):
                        _multiply_and_add(builder, summed, number, vector)
            for place, row, old in zip(own, sums, before, strict=True):
                values = [builder.load(summed) for summed in row]
                count = builder.sub(numbers, numbers.type(vectors[-1][0]))
                values[-1] = _first_lanes(builder, count, values[-1], old[-1])
                _store_all(builder, total, place, vectors, values)
        return context.get_dummy_value()

    return signature, generate


def _first_lanes(builder, count, value, other):
    """A vector whose first lanes are those of one value, and the rest another's."""
    lanes = ir.VectorType(INT32, value.type.count)
    order = ir.Constant(lanes, list(range(lanes.count)))
    limit = spread(builder, builder.trunc(count, INT32), lanes)
    return builder.select(builder.icmp_signed("<", order, limit), value, other)


def _store_all(builder, target, at, vectors, values):
    for (begin, _), value in zip(vectors, values, strict=True):
        place = builder.add(at, at.type(begin))
        builder.store(value, vector_at(builder, target, place, 0, value.type), align=4)


@intrinsic
def largest_sums(typing, best, found, source, starts, window, weights, biases, outputs):
    """Of some outputs, the largest sum of PIXELS windows, and where this one begins.

    Windows begin at `starts` of the source; `window` has their rows, the numbers of a row, and how
    far apart rows are. `outputs` are the first, how many, and those in a row: for each number of a
    window, the weights have a row with one for each output. Of equal sums the first counts; NaN
    wins, as in PyTorch.
    """
    signature = numba.void(best, found, source, starts, window, weights, biases, outputs)

    def generate(context, builder, signature, args):
        arrays = data_of(context, builder, signature, args, (0, 1, 2, 5, 6))
        best, found, source, weights, biases = arrays
        starts, (rows, row, line), (first, count, step) = (
            cgutils.unpack_tuple(builder, args[k]) for k in (3, 4, 7)
        )
        for lanes in cases(builder, _rounded(builder, count), _all_lanes(MOST_OUTPUTS)):
            vectors = _vectors(lanes)
            zeros = [ir.Constant(vector, None) for _, vector in vectors]
            sums = [[cgutils.alloca_once_value(builder, zero) for zero in zeros] for _ in starts]
            with cgutils.for_range(builder, rows) as down:
                begin, number = builder.mul(down.index, line), builder.mul(down.index, row)
                with cgutils.for_range(builder, row) as along:
                    place = builder.mul(builder.add(number, along.index), step)
                    here = _load_all(builder, weights, builder.add(place, first), vectors)
                    for start, own in zip(starts, sums, strict=True):
                        place = builder.add(builder.add(start, begin), along.index)
                        value = builder.load(builder.gep(source, [place]))
                        for summed, vector in zip(own, here, strict=True):
                            _multiply_and_add(builder, summed, value, vector)
            added = _load_all(builder, biases, first, vectors)
            values = [
                [builder.fadd(builder.load(s), bias) for s, bias in zip(own, added, strict=True)]
                for own in sums
            ]
            largest = [_largest(builder, own, starts) for own in zip(*values, strict=True)]
            for target, results in zip((best, found), zip(*largest, strict=True), strict=True):
                _store_all(builder, target, first, vectors, results)
        return context.get_dummy_value()

    return signature, generate


def _largest(builder, values: Sequence[Any], starts: Sequence[Any]):
    """The largest of each lane, and that of the starts which belongs to it."""
    lanes = ir.VectorType(INT32, values[0].type.count)
    places = [spread(builder, builder.trunc(start, INT32), lanes) for start in starts]
    largest, where = values[0], places[0]
    for value, place in zip(values[1:], places[1:], strict=True):
        larger = builder.fcmp_ordered(">", value, largest)
        wins = builder.or_(larger, builder.fcmp_unordered("uno", value, value))
        largest = builder.select(wins, value, largest)
        where = builder.select(wins, place, where)
    return largest, where
