"""Turns that the threads of a team take."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from caffe_dns.kernels.on_cpu.machine_code import compiled, part
from caffe_dns.kernels.on_cpu.threads import ALONE, Team, finish, in_turns, team


@part
def _count(arguments: Any, turn: int) -> None:
    counts, (step,) = arguments
    counts[turn] += step * (turn + 1)


@compiled
def count(threads: Team, counts: np.ndarray, step: int) -> bool:
    return in_turns(threads, counts.size, _count, (counts, (step,)))


@part
def _fail_at_three(arguments: Any, turn: int) -> None:
    (counts,) = arguments
    if turn == 3:
        raise MemoryError
    counts[turn] += 1


@compiled
def fail_at_three(threads: Team, counts: np.ndarray) -> bool:
    return in_turns(threads, counts.size, _fail_at_three, (counts,))


def teams() -> list[Team]:
    start, _ = team()
    return [ALONE, *((start, threads) for threads in (1, 2, 5))]


@pytest.mark.parametrize("turns", [0, 1, 3, 1000])
def test_each_turn_is_taken_once(turns: int) -> None:
    for threads in teams():
        counts = np.zeros(turns, np.int64)
        assert count(threads, counts, 7)
        np.testing.assert_array_equal(counts, 7 * np.arange(1, turns + 1))


def test_a_turn_that_fails_is_told_and_the_others_are_taken() -> None:
    for threads in teams():
        counts = np.zeros(9, np.int64)
        with pytest.raises(MemoryError):
            finish(fail_at_three(threads, counts))
        assert counts.tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 1]
        finish(fail_at_three(threads, counts[:3]))


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has another OpenMP")
def test_the_threads_are_pytorchs() -> None:
    start, threads = team()
    assert start and threads == torch.get_num_threads()
