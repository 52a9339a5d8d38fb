"""Where glibc puts large blocks, seen in a process of its own by how many are mapped."""

from __future__ import annotations

import platform

import pytest

from tests.processes import run_python

PROGRAM = """
import ctypes, os
from contextlib import nullcontext
from caffe_dns.device.heap import beside_the_heap, keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(str(i), ctypes.c_int) for i in range(10)]

libc = ctypes.CDLL("libc.so.6")
libc.mallinfo.restype = Info

def is_mapped(place):
    before = getattr(libc.mallinfo(), "3")
    with place:
        block = bytearray(64 << 20)
    return getattr(libc.mallinfo(), "3") > before

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20

keep_freed_memory()
print(is_mapped(beside_the_heap()), is_mapped(nullcontext()))
blocks = [b"x" * (1 << 20) for _ in range(64)]
del blocks[:-1]  # with one at the end, the others are gaps
before = megabytes()
with beside_the_heap():
    kept = before - megabytes()
print(abs(kept) < 8, before - megabytes() > 56)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_only_work_beside_iterations_gives_memory_back() -> None:
    done = run_python("-c", PROGRAM)
    assert done.stdout == "True False\nTrue True\n", done.stderr
