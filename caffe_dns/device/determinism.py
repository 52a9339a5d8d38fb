"""`--deterministic`: the same bits in every run on the same machine.

On a CPU that is always so, with the same number of threads. On a GPU, cuDNN chooses algorithms by
timing them, and some of them add in whatever order threads arrive.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from caffe_dns.errors import CaffeError, first_line


@contextmanager
def always_the_same_bits(wanted: bool) -> Iterator[None]:
    """A context in which, if `wanted`, only deterministic algorithms run.

    Raises CaffeError when an operation has no such algorithm on this device.
    """
    if not wanted:
        yield
        return
    # cuBLAS reads this when it creates its workspace, at the first product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    tried, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise CaffeError(f"--deterministic: {first_line(error)}") from None
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = tried
