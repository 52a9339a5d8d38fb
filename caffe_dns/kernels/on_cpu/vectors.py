"""The parts of the kernels that are written as vectors for LLVM, which makes them from no loop.

numba's cache of machine code depends on the code that uses this file, not on this file.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import numba
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import extending
from numba.core import cgutils

#: A function that says what LLVM is to make of a call. Callers leave out the first argument.
intrinsic: Any = extending.intrinsic
#: Numbers in a vector.
LANES = 16
#: Whether the processor reads a vector at once, which is a line of its cache then, or else two.
READS_LINES = bool(get_host_cpu_features().get("avx512f"))
#: The most vectors of sums made at a time: as many as registers hold.
MOST_VECTORS = 16 if READS_LINES else 4
#: Numbers that are taken at a time from a row with a stride, and the largest such stride.
TAKEN, MOST_STRIDE = 8, 4
#: Extents of the windows of which `take_largest` finds the maxima.
KERNELS = (2, 3)
#: Numbers that a buffer has to have beyond its planes, because whole vectors are read and written.
SLACK = max(LANES, TAKEN * MOST_STRIDE)

INT32 = ir.IntType(32)
VECTOR = ir.VectorType(ir.FloatType(), LANES)
#: A multiplication and an addition may be one instruction.
CONTRACT = ("contract",)


@intrinsic
def add_products(
    typing, target, at, source, start, n, span, again, places, weights, bias, relu, vectors
):
    """At `at` of the target, so many vectors of sums: a bias, and products with a span of weights.

    Weight j is for the numbers from places[j] * n + start of the source on. If `again`, what is
    there stands for the bias. Sums stay in registers, where no loop over arrays would keep them.
    """
    signature = numba.void(
        target, at, source, start, n, span, again, places, weights, bias, relu, vectors
    )

    def generate(context, builder, signature, args):
        target, source, places, weights = data_of(context, builder, signature, args, (0, 2, 7, 8))
        _, at, _, start, n, span, again, _, _, bias, relu, vectors = args
        begin, end = cgutils.unpack_tuple(builder, span)
        for count in cases(builder, vectors, range(1, MOST_VECTORS + 1)):
            totals = [_total(builder, target, at, k, again, bias) for k in range(count)]
            with cgutils.for_range_slice(builder, begin, end, begin.type(1)) as (j, _):
                weight = spread(builder, builder.load(builder.gep(weights, [j])))
                place = builder.sext(builder.load(builder.gep(places, [j])), n.type)
                here = builder.add(builder.mul(place, n), start)
                for k, total in enumerate(totals):
                    product = builder.fmul(weight, load(builder, source, here, k), CONTRACT)
                    builder.store(builder.fadd(builder.load(total), product, CONTRACT), total)
            for k, total in enumerate(totals):
                value, zero = builder.load(total), ir.Constant(VECTOR, None)
                rectified = builder.select(builder.fcmp_ordered("<", value, zero), zero, value)
                value = builder.select(relu, rectified, value)
                builder.store(value, vector_at(builder, target, at, k), align=4)
        return context.get_dummy_value()

    return signature, generate


def data_of(context, builder, signature, args, numbers):
    """Where the numbers of those arguments lie that are arrays."""
    return (context.make_array(signature.args[i])(context, builder, args[i]).data for i in numbers)


def cases(builder, number, values):
    """Code for each value that a number may have; with another, nothing is done."""
    done = builder.append_basic_block()
    cases = builder.switch(number, done)
    for value in values:
        case = builder.append_basic_block()
        cases.add_case(number.type(value), case)
        builder.position_at_end(case)
        yield value
        builder.branch(done)
    builder.position_at_end(done)


def _total(builder, target, at, k, again, bias):
    """A vector with its first value, in a register once LLVM has seen to it."""
    total = cgutils.alloca_once(builder, VECTOR)
    with builder.if_else(again) as (there, new):
        with there:
            builder.store(load(builder, target, at, k), total)
        with new:
            builder.store(spread(builder, bias), total)
    return total


def spread(builder, number, vector=VECTOR):
    """A vector of one number."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, INT32(0))
    places = ir.Constant(ir.VectorType(INT32, vector.count), None)
    return builder.shuffle_vector(first, first, places)


def vector_at(builder, numbers, at, k, vector=VECTOR):
    place = builder.gep(numbers, [builder.add(at, at.type(k * vector.count))])
    return builder.bitcast(place, vector.as_pointer())


def load(builder, numbers, at, k=0, vector=VECTOR):
    return builder.load(vector_at(builder, numbers, at, k, vector), align=4)


def _larger(builder, before, value):
    larger = builder.select(builder.fcmp_ordered(">", value, before), value, before)
    nan = builder.fcmp_unordered("uno", value, value)  # which wins, as in PyTorch
    return builder.select(nan, value, larger)


def _each(builder, numbers, stride):
    """Every stride-th number of a vector."""
    if stride == 1:
        return numbers
    mask = ir.Constant(ir.VectorType(INT32, TAKEN), list(range(0, TAKEN * stride, stride)))
    return builder.shuffle_vector(numbers, numbers, mask)


@intrinsic
def take_some(typing, target, at, source, start, stride):
    """TAKEN numbers for the target, from `at` on: each stride-th of the source from `start` on."""
    signature = numba.void(target, at, source, start, stride)

    def generate(context, builder, signature, args):
        target, source = data_of(context, builder, signature, args, (0, 2))
        _, at, _, start, stride = args
        for step in cases(builder, stride, range(1, MOST_STRIDE + 1)):
            numbers = load(builder, source, start, 0, _row(step))
            taken = _each(builder, numbers, step)
            builder.store(taken, vector_at(builder, target, at, 0, _row(1)), align=4)
        return context.get_dummy_value()

    return signature, generate


def _row(stride):
    return ir.VectorType(VECTOR.element, TAKEN * stride)


@intrinsic
def take_largest(typing, target, at, source, start, across, down, kernel, stride):
    """TAKEN maxima of windows, for the target from `at` on.

    The first begins at `start` of the source, each next one `stride` numbers further on, at most 2.
    Columns of a window are `across` numbers apart, rows `down`.
    """
    signature = numba.void(target, at, source, start, across, down, kernel, stride)

    def generate(context, builder, signature, args):
        target, source = data_of(context, builder, signature, args, (0, 2))
        _, at, _, start, across, down, kernel, stride = args
        for extent in cases(builder, kernel, KERNELS):
            for step in cases(builder, stride, (1, 2)):
                columns = []
                for x in range(extent):
                    column = builder.add(start, builder.mul(across, across.type(x)))
                    rows = [
                        builder.add(column, builder.mul(down, down.type(y))) for y in range(extent)
                    ]
                    numbers = (load(builder, source, row, 0, _row(step)) for row in rows)
                    largest = reduce(partial(_larger, builder), numbers)
                    columns.append(_each(builder, largest, step))
                largest = reduce(partial(_larger, builder), columns)
                builder.store(largest, vector_at(builder, target, at, 0, _row(1)), align=4)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def pointer(typing, address, item):
    """A pointer to numbers of the type of `item` at an address."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return numba.types.CPointer(item)(address, item), generate
