"""Trials of two ways, one of which takes longer."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from caffe_dns.device import trial
from caffe_dns.device.trial import Trials


class Event:
    """A GPU's clock, which goes on as it is told to."""

    now = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


def takes(*milliseconds: float) -> trial.Way:
    """A way that takes so long, one time after the other; the last again and again."""
    calls = count()

    def way() -> None:
        Event.now += milliseconds[min(next(calls), len(milliseconds) - 1)]

    return way


def fails() -> None:
    raise RuntimeError("no engine")


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    return Trials()


def test_the_shorter_way(trials: Trials) -> None:
    assert trials.is_faster("a", takes(2), takes(3))
    assert not trials.is_faster("b", takes(3), takes(2))
    assert not trials.is_faster("c", takes(2), takes(2))


def test_the_first_time_and_disturbances_do_not_count(trials: Trials) -> None:
    assert trials.is_faster("a", takes(100, 9, 2, 9), takes(3))


def test_what_fails_is_not_taken(trials: Trials) -> None:
    """Whatever is raised: a compiler's errors are of no kind of PyTorch's."""

    def does_not_compile() -> None:
        raise LookupError("out of resource: shared memory")

    assert not trials.is_faster("a", fails, takes(3))
    assert not trials.is_faster("b", does_not_compile, takes(3))


def test_a_case_is_tried_once(trials: Trials) -> None:
    assert trials.is_faster("a", takes(2), takes(3))
    assert trials.is_faster("a", fails, fails)


def test_where_nothing_is_tried(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "benchmark", False)
        assert not trials.is_faster("a", takes(2), takes(3))
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert not trials.is_faster("a", takes(2), takes(3))
        trials.found["b"] = True
        assert trials.is_faster("b", takes(2), takes(3))
    assert trials.is_faster("a", takes(2), takes(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    few, many = torch.ones(1000, device="cuda"), torch.ones(100_000_000, device="cuda")
    trials = Trials()
    assert trials.is_faster("a", few.sum, many.sum) and not trials.is_faster("b", many.sum, few.sum)
