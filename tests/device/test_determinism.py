"""--deterministic holds only while it is entered, and says what cannot be had."""

from __future__ import annotations

import pytest
import torch

from caffe_dns.device.determinism import always_the_same_bits
from caffe_dns.errors import CaffeError


def settings() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark


@pytest.mark.parametrize("wanted", [True, False])
def test_settings_are_put_back(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = settings()
    with always_the_same_bits(wanted):
        assert settings() == ((True, False) if wanted else before)
    assert settings() == before


def test_what_has_no_such_algorithm_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with (
        pytest.raises(CaffeError, match="--deterministic: put_ does not have"),
        always_the_same_bits(True),
    ):
        raise RuntimeError("put_ does not have a deterministic implementation\nbut you set")


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="something else"), always_the_same_bits(True):
        raise RuntimeError("something else")
