"""Runs compiled work in the threads that PyTorch computes with.

These are GNU OpenMP's, which spin for a while after each operation and so can start on the next one
at once. Threads of our own would have to be woken while PyTorch's are still spinning on their
cores.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from llvmlite import ir
from numba.core import cgutils, types

from caffe_dns.kernels.on_cpu.vectors import intrinsic

#: Where OpenMP's function that starts threads lies, 0 if there is none, and how many to start.
Team = tuple[int, int]
ALONE: Team = (0, 1)

INT64 = ir.IntType(64)
POINTER = ir.IntType(8).as_pointer()
#: A function that a thread runs, what it is given, the number of threads, and flags.
START = ir.FunctionType(
    ir.VoidType(),
    [
        ir.FunctionType(ir.VoidType(), [POINTER]).as_pointer(),
        POINTER,
        ir.IntType(32),
        ir.IntType(32),
    ],
)


def team() -> Team:
    """As many threads as PyTorch has; where it has another OpenMP, this one alone."""
    return _start(), torch.get_num_threads()


def finish(done: bool) -> None:
    """Raise where some turns could not be done."""
    if not done:
        raise MemoryError


@cache
def _start() -> int:
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0


@intrinsic
def in_turns(typing, team, turns, work, arguments):
    """work(arguments, turn) of each turn from 0 on, in the threads of a team.

    Each takes the next turn when it is ready, so that one that has to wait for its core holds up
    nobody. Returns whether all could be done: for some there may be no memory.
    """
    taken = types.void(arguments, types.int64)
    signature = types.boolean(team, turns, work, arguments)

    def generate(context, builder, signature, args):
        (start, threads), turns = cgutils.unpack_tuple(builder, args[0]), args[1]
        arguments = _uncounted(context, builder, signature.args[3], args[3])
        shared = ir.LiteralStructType([INT64, INT64, INT64, arguments.type])
        data = cgutils.alloca_once(builder, shared)
        for k, value in enumerate((INT64(0), turns, INT64(0), arguments)):
            builder.store(value, cgutils.gep_inbounds(builder, data, 0, k))
        function = work.dispatcher.py_func
        done = context.compile_subroutine(builder, function, taken)
        run = _taking_turns(context, builder.module, done.fndesc, shared)
        given = builder.bitcast(data, POINTER)
        none = builder.icmp_unsigned("==", start, INT64(0))
        with builder.if_else(none) as (alone, together):
            with alone:
                builder.call(run, [given])
            with together:
                many = builder.trunc(threads, ir.IntType(32))
                function = builder.inttoptr(start, START.as_pointer())
                builder.call(function, [run, given, many, ir.IntType(32)(0)])
        failed = builder.load(cgutils.gep_inbounds(builder, data, 0, 2))
        return builder.icmp_unsigned("==", failed, INT64(0))

    return signature, generate


def _uncounted(context, builder, kind, value):
    """Arrays, or tuples of them, whose readers nobody counts: threads would wait for the counter.

    Who calls holds them for as long.
    """
    if isinstance(kind, types.BaseTuple):
        items: Any = kind
        for k, item in enumerate(items):
            part = _uncounted(context, builder, item, builder.extract_value(value, k))
            value = builder.insert_value(value, part, k)
    elif isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        for owner in ("meminfo", "parent"):
            setattr(array, owner, cgutils.get_null_value(getattr(array, owner).type))
        value = array._getvalue()
    return value


def _taking_turns(context, module, work, shared):
    """The function that each thread runs: it takes one turn after the other."""
    name = module.get_unique_name("taking_turns")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), name)
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    data = builder.bitcast(function.args[0], shared.as_pointer())
    taken, turns, failed, arguments = (
        cgutils.gep_inbounds(builder, data, 0, k) for k in range(len(shared.elements))
    )
    turns, arguments = builder.load(turns), builder.load(arguments)
    again, body, end = (function.append_basic_block() for _ in range(3))
    builder.branch(again)
    builder.position_at_end(again)
    turn = builder.atomic_rmw("add", taken, INT64(1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", turn, turns), body, end)
    builder.position_at_end(body)
    called = context.declare_function(module, work)
    status, _ = context.call_conv.call_function(
        builder, called, work.restype, work.argtypes, [arguments, turn]
    )
    with builder.if_then(status.is_error):
        builder.store(INT64(1), failed)
    builder.branch(again)
    builder.position_at_end(end)
    builder.ret_void()
    return function
