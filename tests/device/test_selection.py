"""Which device a process gets, with GPUs that are only imagined."""

from __future__ import annotations

import pytest
import torch

from caffe_dns.device import selection as devices
from caffe_dns.device.selection import training_device
from caffe_dns.errors import CaffeError
from caffe_dns.parallel.world import World
from caffe_dns.proto.caffe_pb2 import SolverParameter

CPU, GPU = (
    SolverParameter(solver_mode=mode) for mode in (SolverParameter.CPU, SolverParameter.GPU)
)
UNSAID = SolverParameter()


@pytest.fixture(autouse=True)
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: f"imagined {gpu}")
    monkeypatch.setattr(devices, "use_gpu", lambda gpu: torch.device("cuda", gpu))


def world(local_rank: int, local_size: int) -> World:
    """A process on the second of several hosts."""
    return World(4 + local_rank, 8, local_rank, local_size, "host", 29500, store_is_kept=True)


@pytest.mark.parametrize(
    ("flag", "param", "device"),
    [("", UNSAID, "cpu"), ("", CPU, "cpu"), ("", GPU, "cuda:0"), ("2", CPU, "cuda:2")],
)
def test_alone(flag: str, param: SolverParameter, device: str) -> None:
    assert training_device(flag, param) == torch.device(device)


@pytest.mark.parametrize("param", [UNSAID, GPU])
def test_each_rank_takes_the_gpu_of_its_local_rank(param: SolverParameter) -> None:
    found = [training_device("", param, world(rank, 3)) for rank in range(3)]
    assert found == [torch.device("cuda", gpu) for gpu in range(3)]
    chosen = [training_device("2,0", param, world(rank, 2)) for rank in range(2)]
    assert chosen == [torch.device("cuda", gpu) for gpu in (2, 0)]


def test_ranks_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training_device("", CPU, world(1, 4)) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert training_device("", UNSAID, world(1, 4)) == torch.device("cpu")


@pytest.mark.parametrize(("flag", "gpus"), [("", 3), ("0", 1), ("0,2", 2)])
def test_more_ranks_than_gpus(flag: str, gpus: int) -> None:
    with pytest.raises(CaffeError, match=rf"^{gpus} GPU\(s\) for 4 processes on this host"):
        training_device(flag, GPU, world(0, 4))
