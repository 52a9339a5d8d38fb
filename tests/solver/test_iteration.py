"""What a recorded iteration reads its batches from; the recording itself is in tests/test_gpu."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_dns.layers.base import Context
from caffe_dns.layers.memory_data import MemoryData
from caffe_dns.parallel.averaging import GradientAverage
from caffe_dns.solver import iteration
from caffe_dns.solver.iteration import (
    Batches,
    CapturedIteration,
    due,
    run_iteration,
    taken_over,
)
from caffe_dns.solver.update_rules import solver_types
from tests.layers.test_weight_gradients import OnTheSpot
from tests.nets import input_layer, ip, layer, make_net, recorded_log
from tests.solver.rules import parse

DUMMY = """dummy_data_param { shape { dim: 2 dim: 3 } data_filler { type: "constant" value: 2 }
data_filler { type: "uniform" } shape { dim: 2 dim: 1 } }"""
MEMORY = "memory_data_param { batch_size: 2 channels: 1 height: 1 width: 3 }"


@pytest.mark.parametrize(("interval", "times"), [(3, [0, 3, 6]), (-3, [0, 3, 6]), (0, [])])
def test_intervals_count_without_their_sign(interval: int, times: list[int]) -> None:
    """As the remainder of C++ does: snapshot: -3 of a real Caffe writes one every 3 iterations."""
    assert [number for number in range(8) if due(number, interval)] == times


def test_a_batch_that_nobody_else_keeps_is_taken_over() -> None:
    text = f"layer {{ name: 'd' type: 'DummyData' top: 'same' top: 'new' {DUMMY} }}"
    net = make_net(text)
    batch = net.read_sources()
    inputs = taken_over(batch, net.given_away())
    assert inputs["same"] is batch["same"] and inputs["new"] is batch["new"]
    parts = {name: tensor[1:] for name, tensor in batch.items()}
    inputs = taken_over(parts, net.given_away())
    assert all(inputs[name].data_ptr() != parts[name].data_ptr() for name in parts)


def test_numbers_that_come_again_are_copied() -> None:
    text = f"layer {{ name: 'm' type: 'MemoryData' top: 'data' top: 'label' {MEMORY} }}"
    net = make_net(text)
    source = net.layer("m")
    assert isinstance(source, MemoryData) and not net.given_away()
    for rows in (2, 4):
        source.set_input(np.ones((rows, 1, 1, 3), np.float32), np.zeros(rows, np.float32))
        first = taken_over(net.read_sources(), net.given_away())
        for tensor in first.values():
            tensor.fill_(7)
        again = {name: tensor for _ in range(2) for name, tensor in net.read_sources().items()}
        assert float(again["data"].max()) == 1 and float(again["label"].max()) == 0


def test_batches_may_be_read_into_earlier_ones() -> None:
    given: list[object] = []

    def read(into: object) -> dict[str, torch.Tensor]:
        given.append(into)
        return {"data": torch.full((1,), float(len(given)))}

    earlier = [{"data": torch.zeros(1)}, {"data": torch.zeros(1)}]
    batches = Batches(read, 2).into(earlier)
    assert [float(batch["data"]) for batch in batches] == [1, 2]
    assert all(each is batch for each, batch in zip(given, earlier, strict=True))
    assert [float(batch["data"]) for batch in Batches(read, 2)] == [3, 4]
    assert given[2:] == [None, None]


class FailingCapture:
    """What PyTorch's graph does where a capture fails: generators of it can no longer draw."""

    def __init__(self) -> None:
        self.generators: list[torch.Generator] = []

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def __enter__(self) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def __exit__(self, *error: object) -> None:
        """Never called."""


def test_a_net_that_cannot_be_captured_draws_from_another_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captures: list[FailingCapture] = []

    def new() -> FailingCapture:
        captures.append(FailingCapture())
        return captures[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", new)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: graph)
    monkeypatch.setattr(iteration, "SecondStream", lambda: None)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    losses: dict[bool, list[float]] = {}
    for captured in (False, True):
        net = make_net(
            input_layer(data=(4, 6))
            + layer("drop", "Dropout", "data", "drop")
            + ip("a", "drop")
            + layer("loss", "Reduction", "a", "loss", "loss_weight: 1")
        )
        rule = solver_types["SGD"](parse("momentum: 0.9"), net.learnable_params)
        iterations = CapturedIteration(net, rule)
        iterations._failed = not captured
        batch = {"data": torch.ones(4, 6)}
        net.context.counts_passes = False
        found = losses[captured] = []
        with recorded_log() as said:
            for number in range(6):
                net.context.passes = number
                rule.begin(number, 0.01)
                found.append(float(iterations.run([batch]).loss))
        assert len(said) == captured
    (failed,) = captures
    assert losses[True] == losses[False] and len(set(losses[True])) == 6
    assert failed.generators and net.context.generator() not in failed.generators


@pytest.mark.parametrize(
    ("shapes", "wanted"),
    [(None, "second"), ([], "second"), ([(4,)], "second"), ([(4,), (800_000,)], None)],
)
def test_a_second_stream_computes_what_does_not_travel_before_the_end(
    shapes: list[tuple[int, ...]] | None, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iteration, "SecondStream", lambda: "second")
    net = make_net(input_layer(data=(4, 6)) + ip("a", "data"))
    rule = solver_types["SGD"](parse("momentum: 0.9"), net.learnable_params)
    average = None
    if shapes is not None:
        parameters = [torch.zeros(shape, requires_grad=True) for shape in shapes]
        average = GradientAverage(parameters, lambda values: lambda: None)
    assert CapturedIteration(net, rule, average)._deferred_gradients == wanted


def test_gradients_computed_beside_backward_are_averaged() -> None:
    """Two passes, after each of which they are added up."""
    found = []
    for deferred in (None, OnTheSpot()):
        text = input_layer(data=(4, 6)) + ip("a", "data") + ip("b", "a")
        net = make_net(
            text + layer("loss", "Reduction", "b", "loss", "loss_weight: 1"),
            context=Context(seed=3),
        )
        rule = solver_types["SGD"](parse("momentum: 0.9 iter_size: 2"), net.learnable_params)
        learning = [p.tensor for p in net.learnable_params if p.tensor.requires_grad]
        average = GradientAverage(learning, lambda values: lambda: values.mul_(2))
        assert average.goes_at_once
        rule.begin(0, 0.1)
        batches = [{"data": torch.full((4, 6), value)} for value in (1.0, 3.0)]
        run_iteration(net, rule, batches, average, deferred)
        assert deferred is None or deferred.joined == 4
        found.append([param.tensor.detach() for param in net.learnable_params])
    for mine, autograds in zip(*found, strict=True):
        torch.testing.assert_close(mine, autograds)
