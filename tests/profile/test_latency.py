"""The time of a pass, divided up among layers, by a clock that counts."""

from __future__ import annotations

import pytest

from caffe_dns.profile import latency
from caffe_dns.proto.caffe_pb2 import TEST
from tests.nets import input_layer, layer, make_net


class Counter:
    """Every mark is a millisecond after the one before."""

    now = 0.0

    def mark(self) -> float:
        self.now += 1.0
        return self.now

    def between(self, start: float, end: float) -> float:
        return end - start

    def wait(self) -> None:
        """Nothing runs beside it."""


def test_parts_add_up_to_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_net(
        input_layer(data=(1, 3, 4, 4))
        + layer("one", "ReLU", "data", "one")
        + layer("two", "Pooling", "one", "two", "pooling_param { kernel_size: 2 }"),
        TEST,
    )
    counter = Counter()
    monkeypatch.setattr(latency, "clock_of", lambda net: counter)
    measured = latency.time_pass(net)
    assert measured.total == 1
    assert list(measured.layers) == [step.layer.name for step in net.steps]
    assert sum(measured.layers.values()) == pytest.approx(1)
    assert list(measured.layers.values()) == pytest.approx([1 / 3] * 3)
