"""Sharing work among threads, and how many there are."""

from __future__ import annotations

import os
import threading
import weakref

import pytest
import torch

from caffe_dns.data.workers import Workers, available_cores, decoding_processes, reading_threads
from caffe_dns.errors import CaffeError
from tests.processes import PATIENCE


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("indices", [range(0), range(1), range(1, 100)])
def test_every_index_comes_once(threads: int, indices: range) -> None:
    seen: list[int] = []
    workers = Workers(threads)
    workers.run(seen.extend, indices)
    workers.run(seen.extend, indices)
    workers.close()
    assert sorted(seen) == sorted([*indices, *indices])


def test_the_work_is_shared() -> None:
    barrier = threading.Barrier(3, timeout=PATIENCE)  # which three threads can pass, together

    def work(some: range) -> None:
        barrier.wait()

    workers = Workers(3)
    workers.run(work, range(3))
    workers.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_errors_come_out(threads: int) -> None:
    def work(some: range) -> None:
        if 7 in some:
            raise CaffeError("seven")

    workers = Workers(threads)
    with pytest.raises(CaffeError, match="seven"):
        workers.run(work, range(10))
    workers.close()


def test_as_many_threads_as_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, for_gpu, for_cpu in [({5}, 1, 1), ({0, 3, 4}, 3, 1), (set(range(16)), 10, 8)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores, raising=False)
        assert available_cores() == len(cores)
        assert reading_threads(for_gpu=True) == for_gpu
        assert reading_threads(for_gpu=False) == for_cpu
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores() == (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("cores", "ranks", "expected"), [(3, 1, 0), (4, 1, 4), (16, 4, 4), (16, 8, 0), (64, 1, 16)]
)
def test_processes_where_there_are_cores_for_them(
    cores: int, ranks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffe_dns.data.workers.available_cores", lambda: cores)
    monkeypatch.setattr(os, "memfd_create", lambda: None, raising=False)
    assert decoding_processes(ranks, 2) == expected
    assert decoding_processes(ranks, 1) == 0
    monkeypatch.delattr(os, "memfd_create")
    assert decoding_processes(ranks, 2) == 0


def test_no_thread_divides_its_work_among_others() -> None:
    def threads() -> int:
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return seen[0]

    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen: list[int] = []
        workers = Workers(2)
        workers.run(lambda some: seen.append(torch.get_num_threads()), range(8))
        workers.close()
        assert set(seen) == {1}
        # Neither of the threads that are, nor of those that come.
        assert torch.get_num_threads() == threads() == 3
    finally:
        torch.set_num_threads(usual)


@pytest.mark.parametrize("at_least", [1, 4, 50])
def test_pieces_have_the_size_that_they_are_worth(at_least: int) -> None:
    sizes: list[int] = []
    workers = Workers(3)
    for piece in workers.start(lambda some: sizes.append(len(some)), range(10), at_least):
        piece.result()
    workers.close()
    # No less than they are worth, and no more than two for each thread.
    size = min(max(at_least, 2), 10)
    assert max(sizes) == size
    assert sum(sizes) == 10
    assert len(sizes) == -(-10 // size)


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order(threads: int) -> None:
    workers = Workers(threads)
    assert workers.map(lambda at: at * at, range(20)) == [at * at for at in range(20)]
    assert workers.map(str, []) == []
    with pytest.raises(ZeroDivisionError):
        workers.map(lambda at: 1 // (at - 7), range(20))
    workers.close()


@pytest.mark.parametrize(
    ("cost", "most"), [(0, 8 * 33), (3 << 20, 32), (100 << 20, 2), (1 << 30, 1)]
)
def test_fewer_are_made_ahead_where_they_are_large(cost: int, most: int) -> None:
    asked: list[int] = []

    def cost_of(item: int) -> int:
        asked.append(item)
        return cost if item else 0  # so that the first says nothing of the others

    workers = Workers(3)
    ahead: list[int] = []
    results = workers.stream(lambda item: item * item, iter(range(600)), cost_of)
    for used, result in enumerate(results):
        assert result == used * used
        ahead.append(len(asked) - used)
    workers.close()
    # Others have been asked for their cost, and wait for room.
    assert most <= max(ahead) <= most + 3


@pytest.mark.parametrize("threads", [1, 3])
def test_results_that_were_used_are_gone_when_others_are_made(threads: int) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    there: list[int] = []

    def make(item: int) -> torch.Tensor:
        there.append(sum(reference() is not None for reference in [*made]))
        result = torch.zeros(1)
        made.append(weakref.ref(result))
        return result

    workers = Workers(threads)
    for _ in workers.stream(make, range(40), lambda _: 60 << 20):  # 4 of which have room
        pass
    workers.close()
    assert max(there) <= 4


@pytest.mark.parametrize("threads", [1, 3])
def test_a_stream_raises_what_making_raises(threads: int) -> None:
    workers = Workers(threads)
    results = workers.stream(lambda item: 1 // (item - 30), range(60), lambda _: 1 << 20)
    with pytest.raises(ZeroDivisionError):
        assert list(results) is None
    assert list(workers.stream(str, [], lambda _: 1)) == []
    workers.close()
