"""Kernels for a CPU, compiled by numba.

Importing numba takes a second, so the modules of this folder are imported where they are used, and
by nothing that is always imported. Each has an equivalent in plain PyTorch, for machines where
numba does not work.
"""

from __future__ import annotations

from functools import cache

from caffe_dns import log
from caffe_dns.errors import first_line


@cache
def works() -> bool:
    """Whether numba can be imported, which says so of a NumPy that is too new; logs it if not."""
    try:
        import caffe_dns.kernels.on_cpu.machine_code  # noqa: F401
    except ImportError as error:
        log.info(f"Running PyTorch's own kernels: numba does not work ({first_line(error)})")
        return False
    return True
