"""Where glibc puts large blocks, seen in a process of its own by how many are mapped."""

from __future__ import annotations

import platform

import pytest

from tests.processes import run_python

PROGRAM = """
import ctypes
from contextlib import nullcontext
from caffe_dns.device.heap import beside_the_heap, keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(str(i), ctypes.c_int) for i in range(10)]

libc = ctypes.CDLL("libc.so.6")
libc.mallinfo.restype = Info

def is_mapped(place):
    before = getattr(libc.mallinfo(), "3")
    with place:
        block = bytearray(8 << 20)
    return getattr(libc.mallinfo(), "3") > before

keep_freed_memory()
print(is_mapped(beside_the_heap()), is_mapped(nullcontext()))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_only_work_beside_iterations_maps_large_blocks() -> None:
    done = run_python("-c", PROGRAM)
    assert done.stdout == "True False\n", done.stderr
