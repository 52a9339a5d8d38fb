"""What is said where Triton does not work, and what would help."""

from __future__ import annotations

import errno
import os
import sys
from json import JSONDecodeError
from types import ModuleType

import pytest

from caffe_dns import kernels
from tests.nets import recorded_log


class Failing(ModuleType):
    """A module of which nothing can be imported, for this reason."""

    def __init__(self, error: Exception) -> None:
        super().__init__("failing")
        self._error: Exception = error

    def __getattr__(self, name: str) -> object:
        raise self.__dict__["_error"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), "/.triton"),
            "[Errno 30] Read-only file system: '/.triton'); TRITON_CACHE_DIR may name a folder "
            "that can be written",
        ),
        (
            JSONDecodeError("Expecting value", "", 0),
            "Expecting value: line 1 column 1 (char 0)); its folder of compiled kernels is "
            "damaged: remove /kept",
        ),
        (ModuleNotFoundError("No module named 'triton'"), "No module named 'triton')"),
    ],
)
def test_advice(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "caffe_dns.kernels.sgd", Failing(error))
    monkeypatch.setenv("TRITON_CACHE_DIR", "/kept")
    with recorded_log() as messages:
        assert not kernels._works.__wrapped__()
    assert messages == [f"Running PyTorch's own kernels: Triton does not work ({said}"]
