"""Random draws from a counter: no state is stored.

Every draw is a function of (seed, stream, counter, rank): the stream is a name such as
"dropout/drop1", the counter says which draw it is. Resuming a run therefore needs no generator
state, and ranks draw the same or different numbers as the caller decides.
"""

from __future__ import annotations

import hashlib

import numpy as np

TYPE_CHECKING = False  # see caffe_dns
if TYPE_CHECKING:
    import torch


def key(seed: int, stream: str, counter: int = 0, rank: int = 0) -> int:
    """A 63-bit key that depends on all four."""
    text = f"{seed}/{stream}/{counter}/{rank}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def uniform(seed: int, stream: str, counter: int = 0) -> float:
    """A single draw from [0, 1), which takes less time than a generator."""
    return key(seed, stream, counter) / 2**63


def numpy_generator(seed: int, stream: str, counter: int = 0) -> np.random.Generator:
    """A numpy generator for the draws of one (seed, stream, counter)."""
    return np.random.Generator(np.random.Philox(key=key(seed, stream, counter)))


def torch_generator(seed: int, stream: str) -> torch.Generator:
    """A torch generator on the CPU for the draws of one (seed, stream)."""
    import torch  # here, because processes that only decode do without it

    return torch.Generator().manual_seed(key(seed, stream))
