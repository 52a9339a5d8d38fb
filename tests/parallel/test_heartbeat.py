"""Who listens to whom; what comes of silence is tested with processes, in test_ranks."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch.distributed as dist

from caffe_dns.parallel.heartbeat import Heartbeat


@pytest.mark.parametrize(
    ("rank", "size", "heard"),
    [(0, 2, [1]), (1, 2, [0]), (2, 4, [3, 0, 1]), (1015, 1024, [*range(1016, 1024), *range(8)])],
)
def test_each_rank_listens_to_those_after_it(rank: int, size: int, heard: list[int]) -> None:
    store = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20)
    )
    heart = Heartbeat(rank, size, "127.0.0.1", store.port, rank_0_keeps=True)
    heart.stop()
    assert list(heart._heard) == heard


def test_somebody_outside_a_host_listens_to_its_first_rank() -> None:
    """Hosts have up to 16 GPUs."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    heart = Heartbeat(15, 48, "127.0.0.1", store.port, rank_0_keeps=True)
    heart.stop()
    assert 16 in heart._heard
