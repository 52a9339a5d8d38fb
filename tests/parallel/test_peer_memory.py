"""Tensors completed by copies, between threads that stand for ranks: they share memory, too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caffe_dns.device.selection import use_gpu
from caffe_dns.parallel.peer_memory import Shared, average, complete
from caffe_dns.parallel.ranks import JoinedRanks
from caffe_dns.parallel.world import find_world
from tests.parallel.harness import Ranks


def in_turns(
    every: list[Tensor], act: Callable[[Shared, int], Tensor], turns: int = 20
) -> list[list[Tensor]]:
    """What each rank gets in each turn, all ranks at the same time; nobody is overtaken."""
    size = len(every)
    barrier = threading.Barrier(size, timeout=10)

    def meet() -> None:
        barrier.wait()

    def rank_does(rank: int) -> list[Tensor]:
        shared = Shared(every, rank, meet)
        return [act(shared, turn) for turn in range(turns)]

    with ThreadPoolExecutor(size) as ranks:
        return list(ranks.map(rank_does, range(size)))


@pytest.mark.parametrize("size", [2, 3, 8])
def test_all_ranks_get_all_parts(size: int) -> None:
    def act(shared: Shared, turn: int) -> Tensor:
        tensor = torch.full((3 * size, 4), -1.0)
        tensor.chunk(size)[shared.rank].fill_(100 * turn + shared.rank)
        complete(tensor, shared)
        return tensor

    for found in in_turns([torch.empty(3 * 4) for _ in range(size)], act):
        for turn, tensor in enumerate(found):
            expected = 100 * turn + torch.arange(size).repeat_interleave(3)
            assert torch.equal(tensor, expected[:, None].expand(-1, 4).float())


@pytest.mark.parametrize("size", [2, 3, 8])
def test_all_ranks_get_the_mean(size: int) -> None:
    def act(shared: Shared, turn: int) -> Tensor:
        buffer = shared.every[shared.rank]
        torch.arange(4 * size, out=buffer).add_(100 * turn + 2 * shared.rank)
        average(buffer, shared)
        return buffer.clone()

    results = in_turns([torch.empty(4 * size) for _ in range(size)], act)
    for found in results:
        for turn, tensor in enumerate(found):
            expected = torch.arange(4.0 * size) + 100 * turn + size - 1
            torch.testing.assert_close(tensor, expected)
            assert torch.equal(tensor, results[0][turn])


def use_peers(words: list[str]) -> None:
    """What each of two ranks does on a GPU of its own, as `Forked` calls it."""
    world = find_world()
    assert world is not None
    device = use_gpu(world.local_rank)
    with JoinedRanks(world) as ranks:
        ranks.use(device)
        assert ranks._peers is not None
        tensor = torch.empty(8, 1000, device=device)
        sizes = (1001, 1_000_001)  # added up at once, and in parts
        buffers = [ranks._peers.new_buffer(size, torch.float32, device) for size in sizes]
        for turn in range(50):
            tensor.fill_(-1)
            ranks.part_of(tensor).fill_(world.rank + turn)
            ranks.complete([tensor])
            assert tensor[:, 0].tolist() == [turn] * 4 + [turn + 1] * 4
            # As many numbers, which take turns with the others in the same memory.
            values = torch.full((4, 1000), float(10 * turn + world.rank), device=device)
            rows = ranks.start_gathering(values)()
            assert rows[:, 7].tolist() == [10 * turn] * 4 + [10 * turn + 1] * 4
            for buffer in buffers:
                numbers = torch.arange(len(buffer), device=device, dtype=torch.float32)
                buffer.copy_(numbers + 2 * turn + 2 * world.rank)
                ranks.to_means([buffer])
                assert torch.equal(buffer, numbers + 2 * turn + 1)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_complete_gather_and_average(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, function="tests.parallel.test_peer_memory:use_peers")
    assert ranks.wait() == [0, 0], [ranks.said(rank)[-1000:] for rank in range(2)]
