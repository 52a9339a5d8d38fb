"""Setting a GPU up while PyTorch loads, on a driver that only notes what it is asked."""

from __future__ import annotations

import ctypes

import pytest

from caffe_dns.cli import early_gpu


class Driver:
    """libcuda.so.1 with one GPU."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def cuInit(self, flags: int) -> int:
        self.calls.append(f"init {flags}")
        return 0

    def cuDeviceGet(self, device: object, gpu: int) -> int:
        self.calls.append(f"get {gpu}")
        return 101 if gpu else 0

    def cuDevicePrimaryCtxRetain(self, context: object, device: ctypes.c_int) -> int:
        self.calls.append(f"retain {device.value}")
        return 0


@pytest.mark.parametrize(
    ("flag", "calls"),
    [
        ("0", ["init 0", "get 0", "retain 0", "try 0"]),
        ("7", ["init 0", "get 7"]),
        ("0,1", []),
        ("all", []),
        ("", []),
        (None, []),
    ],
)
def test_a_single_gpu(flag: str | None, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(early_gpu, "_try_kernels", lambda gpu: driver.calls.append(f"try {gpu}"))
    thread = early_gpu.set_up(flag)
    if thread is not None:
        thread.join()
    assert driver.calls == calls


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    thread = early_gpu.set_up("0")
    assert thread is not None
    thread.join()
