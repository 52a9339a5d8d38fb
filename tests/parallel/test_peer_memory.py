"""Tensors completed by copies, between threads that stand for ranks: they share memory, too."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from caffe_dns.parallel.peer_memory import Shared, complete


@pytest.mark.parametrize("size", [2, 3, 8])
def test_all_ranks_get_all_parts(size: int) -> None:
    every = [torch.empty(3 * 4) for _ in range(size)]
    barrier = threading.Barrier(size, timeout=10)

    def meet() -> None:
        barrier.wait()

    def rank_does(rank: int) -> list[Tensor]:
        shared, found = Shared(every, rank, meet), []
        for turn in range(20):  # nobody is overtaken
            tensor = torch.full((3 * size, 4), -1.0)
            tensor.chunk(size)[rank].fill_(100 * turn + rank)
            complete(tensor, shared)
            found.append(tensor)
        return found

    with ThreadPoolExecutor(size) as ranks:
        results = list(ranks.map(rank_does, range(size)))
    for found in results:
        for turn, tensor in enumerate(found):
            expected = 100 * turn + torch.arange(size).repeat_interleave(3)
            assert torch.equal(tensor, expected[:, None].expand(-1, 4).float())
