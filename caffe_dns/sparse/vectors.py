"""What of the kernels is written for LLVM, by vectors, since no loop over arrays becomes it.

Machine code that numba keeps is made again when `kernels` changes, not when this file does.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import extending
from numba.core import cgutils

#: A function that says what LLVM is to make of a call. Callers leave out the first argument.
intrinsic: Any = extending.intrinsic
#: Numbers in a vector, and the most vectors of sums made at a time: as many as registers hold.
LANES = 16
MOST_VECTORS = 8 if get_host_cpu_features().get("avx512f") else 4
#: Of how many sums, made side by side, the largest may be asked for.
PARTS = (1, 2, 4)
#: Numbers that are taken at a time from a row with a stride, and the largest such stride.
TAKEN, MOST_STRIDE = 8, 4
#: Numbers that a buffer has to have beyond its planes, because whole vectors are read and written.
SLACK = max(LANES, TAKEN * MOST_STRIDE)

INT32 = ir.IntType(32)
VECTOR = ir.VectorType(ir.FloatType(), LANES)


@intrinsic
def largest_sums(
    typing,
    target,
    at,
    source,
    start,
    n,
    span,
    parts,
    again,
    places,
    first,
    weights,
    bias,
    relu,
    vectors,
):
    """At `at` of the target, so many vectors of sums: of `parts` of them the largest.

    Each is a bias, or if `again` what is there, and numbers times weights, those of the span of j:
    weight j times those from places[first + j * parts + part] * n + start of the source on. They
    stay in registers, where no loop over arrays would keep them.
    """
    signature = numba.void(
        target,
        at,
        source,
        start,
        n,
        span,
        parts,
        again,
        places,
        first,
        weights,
        bias,
        relu,
        vectors,
    )

    def generate(context, builder, signature, args):
        def data(number):
            return context.make_array(signature.args[number])(context, builder, args[number]).data

        target, source, places, weights = map(data, (0, 2, 8, 10))
        _, at, _, start, n, span, parts, again, _, first, _, bias, relu, vectors = args
        begin, end = cgutils.unpack_tuple(builder, span)
        done = builder.append_basic_block()
        kinds = builder.switch(builder.add(builder.mul(parts, parts.type(64)), vectors), done)
        for number, count in CASES:
            case = builder.append_basic_block()
            kinds.add_case(parts.type(number * 64 + count), case)
            builder.position_at_end(case)
            totals = [_variables(builder, count, bias, again, target, at) for _ in range(number)]
            with cgutils.for_range_slice(builder, begin, end, begin.type(1)) as (j, _):
                weight = _spread(builder, builder.load(builder.gep(weights, [j])))
                for part, own in enumerate(totals):
                    which = builder.add(
                        first, builder.add(builder.mul(j, j.type(number)), j.type(part))
                    )
                    place = builder.sext(builder.load(builder.gep(places, [which])), n.type)
                    here = builder.add(builder.mul(place, n), start)
                    _add_products(builder, own, weight, source, here)
            for own in totals[1:]:
                _keep_larger(builder, totals[0], own)
            _store(builder, totals[0], relu, target, at)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, generate


#: How many sums of which the largest counts, and how many vectors of each, there is code for.
CASES = [(parts, vectors) for parts in PARTS for vectors in range(1, MOST_VECTORS // parts + 1)]


def _variables(builder, count, bias, again, target, at):
    """So many vectors with first values, in registers once LLVM has seen to it."""
    variables = []
    for k in range(count):
        variable = cgutils.alloca_once(builder, VECTOR)
        with builder.if_else(again) as (there, new):
            with there:
                builder.store(builder.load(_vector_at(builder, target, at, k), align=4), variable)
            with new:
                builder.store(_spread(builder, bias), variable)
        variables.append(variable)
    return variables


def _spread(builder, number):
    """A vector of one number."""
    vector = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, INT32(0))
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(INT32, LANES), None))


def _vector_at(builder, numbers, at, k, vector=VECTOR):
    place = builder.gep(numbers, [builder.add(at, at.type(k * vector.count))])
    return builder.bitcast(place, vector.as_pointer())


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
def take_some(typing, target, at, source, start, stride):
    """TAKEN numbers for the target, from `at` on: each stride-th of the source from `start` on."""
    signature = numba.void(target, at, source, start, stride)

    def generate(context, builder, signature, args):
        target, source = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2)
        )
        _, at, _, start, stride = args
        done = builder.append_basic_block()
        strides = builder.switch(stride, done)
        for step in range(1, MOST_STRIDE + 1):
            case = builder.append_basic_block()
            strides.add_case(stride.type(step), case)
            builder.position_at_end(case)
            row, some = (ir.VectorType(VECTOR.element, TAKEN * k) for k in (step, 1))
            numbers = builder.load(_vector_at(builder, source, start, 0, row), align=4)
            mask = ir.Constant(ir.VectorType(INT32, TAKEN), list(range(0, TAKEN * step, step)))
            taken = builder.shuffle_vector(numbers, numbers, mask)
            builder.store(taken, _vector_at(builder, target, at, 0, some), align=4)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def pointer(typing, address, item):
    """A pointer to numbers of the type of `item` at an address."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return numba.types.CPointer(item)(address, item), generate
