"""`dns device_query`: Caffe's lines, and what is said where there is no GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from caffe_dns.cli.actions import device_query
from caffe_dns.device.cuda_driver import Attribute, device_attributes
from tests.cli.harness import complaint, run_well

Capture = pytest.CaptureFixture[str]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def test_lines(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(major=9, minor=0, name="NVIDIA H100", total_memory=85_000_000_000)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: properties)
    numbers = {attribute: 100 + attribute for attribute in Attribute}
    numbers[Attribute.KERNEL_EXEC_TIMEOUT] = 0
    monkeypatch.setattr(device_query, "device_attributes", lambda gpu: numbers)
    assert run_well(["device_query", "-gpu", "0"], capfd).messages == [
        "Querying GPUs 0",
        "Device id:                     0",
        "Major revision number:         9",
        "Minor revision number:         0",
        "Name:                          NVIDIA H100",
        "Total global memory:           85000000000",
        "Total shared memory per block: 108",
        "Total registers per block:     112",
        "Warp size:                     110",
        "Maximum memory pitch:          111",
        "Maximum threads per block:     101",
        "Maximum dimension of block:    102, 103, 104",
        "Maximum dimension of grid:     105, 106, 107",
        "Clock rate:                    113",
        "Total constant memory:         109",
        "Texture alignment:             114",
        "Concurrent copy and execution: Yes",
        "Number of multiprocessors:     116",
        "Kernel execution timeout:      No",
    ]


@pytest.mark.parametrize("flags", [[], ["-gpu", "all"], ["-gpu=0"]])
def test_no_gpu(flags: list[str], capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "there is no GPU" in complaint(["device_query", *flags], capfd)


@needs_gpu
def test_the_driver_agrees_with_torch() -> None:
    has = device_attributes(0)
    properties = torch.cuda.get_device_properties(0)
    assert has[Attribute.MULTIPROCESSOR_COUNT] == properties.multi_processor_count
    assert has[Attribute.WARP_SIZE] == properties.warp_size


@needs_gpu
def test_all_gpus(capfd: Capture) -> None:
    messages = run_well(["device_query"], capfd).messages
    ids = [line.split()[-1] for line in messages if line.startswith("Device id:")]
    assert ids == [str(gpu) for gpu in range(torch.cuda.device_count())]
