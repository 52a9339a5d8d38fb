"""Reading ahead: order, bounds, errors and ends."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading

import pytest

from caffe_dns.data.prefetch import Prefetcher
from caffe_dns.errors import CaffeError
from tests.oracle import GOLDEN
from tests.processes import PATIENCE


def test_keeps_the_order_and_the_bound() -> None:
    made = itertools.count()
    newest = [0]

    def produce() -> int:
        newest[0] = next(made)
        return newest[0]

    prefetcher = Prefetcher(produce, 3, "test")
    for expected in range(50):
        assert prefetcher.get() == expected
        # Three wait, and a fourth may be on its way.
        assert newest[0] <= expected + 4
    prefetcher.close()


@pytest.mark.parametrize(
    ("error", "seen", "is_wrapped"),
    [
        (CaffeError("bad record"), CaffeError, False),
        (MemoryError(), MemoryError, False),
        (RuntimeError("CUDA error: out of memory"), RuntimeError, False),
        (KeyError("bug"), RuntimeError, True),
    ],
)
def test_an_error_comes_after_the_items_before_it(
    error: Exception, seen: type, is_wrapped: bool
) -> None:
    items = iter([1, 2])

    def produce() -> int:
        for item in items:
            return item
        raise error

    prefetcher = Prefetcher(produce, 8, "test")
    assert [prefetcher.get(), prefetcher.get()] == [1, 2]
    for _ in range(2):
        with pytest.raises(seen) as caught:
            prefetcher.get()
        assert (caught.value.__cause__ if is_wrapped else caught.value) is error
    prefetcher.close()


def test_close_ends_the_thread_while_the_queue_is_full_and_wakes_a_waiter() -> None:
    before = set(threading.enumerate())
    full = Prefetcher(lambda: 1, 1, "full")
    full.get()
    full.close()
    full.close()
    with pytest.raises(ValueError, match="closed"):
        full.get()

    release = threading.Event()
    slow = Prefetcher(release.wait, 1, "slow")
    timer = threading.Timer(0.05, release.set)
    timer.start()
    slow.close()
    timer.join()
    assert set(threading.enumerate()) <= before


#: Begins three programs that have imported everything, and prints how they ended.
PROGRAMS = """
import os
from google.protobuf import text_format
from caffe_dns.layers import Context, layer_types
from caffe_dns.proto.caffe_pb2 import LayerParameter
codes = []
for end in ("", "raise SystemExit(3)", "del layer"):
    child = os.fork()
    if child == 0:
        text = '''name: "d" type: "Data" top: "data" top: "label" phase: TEST data_param {
            source: "tests/golden/tools/encoded_lmdb" batch_size: 2 backend: LMDB }
            transform_param { crop_size: 8 force_color: true }'''
        param = text_format.Parse(text, LayerParameter())
        layer = layer_types[param.type](param, Context())
        layer.setup([])
        layer()
        exec(end)
        break
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    print(codes)
"""


def test_programs_end_without_closing() -> None:
    command = [sys.executable, "-c", PROGRAMS]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, cwd=GOLDEN.parents[1])
    assert done.stdout == b"[0, 3, 0]\n", done.stderr
    assert b"Traceback" not in done.stderr
