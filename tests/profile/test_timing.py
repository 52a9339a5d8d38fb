"""Passes layer by layer have the whole net's gradients; whole passes are those of commands."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caffe_dns import load_net
from caffe_dns.net import Net
from caffe_dns.net.wiring import Step
from caffe_dns.profile import timing
from caffe_dns.profile.timing import LayerTimer, PassTimer
from tests.nets import input_layer, ip, layer, make_net
from tests.oracle import GOLDEN


def load(run: str) -> Net:
    return load_net(f"runs/{run}/train_val.prototxt", "TRAIN", f"runs/{run}/init.caffemodel")


def gradients(net: Net) -> dict[str, Tensor]:
    """Filled, by the name of the parameter, as backward goes by."""
    found: dict[str, Tensor] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(
                lambda gradient, name=name: found.update({name: gradient.clone()})
            )
    return found


@pytest.mark.parametrize("run", ["sgd_inv", "bn_inception", "surgery_holmes", "surgery_guo"])
def test_gradients_are_those_of_the_whole_net(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    whole, layerwise = load(run), load(run)
    expected, actual = gradients(whole), gradients(layerwise)
    loss = whole.loss(whole())
    loss.backward()
    timer = LayerTimer(layerwise)
    assert float(timer.forward()) == pytest.approx(float(loss.detach()), rel=1e-6)
    timer.backward()
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-5, atol=1e-7)
    whole.close()
    layerwise.close()


def test_inputs_that_get_gradients_as_well() -> None:
    """`dns time` of a deployed net that says force_backward was a traceback."""
    text = "force_backward: true " + input_layer(data=(2, 3), label=(2, 4)) + ip("ip", "data")
    net = make_net(
        text + ip("out", "ip", outputs=4) + layer("loss", "EuclideanLoss", "out label", "loss")
    )
    actual = gradients(net)
    LayerTimer(net).run()
    assert sorted(actual) == ["ip.bias", "ip.weight", "out.bias", "out.weight"]


def test_times_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which nothing but layers takes time."""
    monkeypatch.chdir(GOLDEN)
    net = load("bn_inception")
    now = 0.0

    def lasting(function: Callable[..., Any], milliseconds: Callable[[Step], float]) -> Any:
        def timed(step: Step, *arguments: Any) -> Any:
            nonlocal now
            now += milliseconds(step) / 1000
            return function(step, *arguments)

        return timed

    place = {step.layer.name: index for index, step in enumerate(net.steps)}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    for name, first in (("forward_layer", 1), ("backward_layer", 1000)):
        takes = partial(lambda first, step: first + place[step.layer.name], first)
        monkeypatch.setattr(timing, name, lasting(getattr(timing, name), takes))
    timer = LayerTimer(net)
    total = timer.run() + timer.run()
    count = range(len(net.steps))
    assert timer.forward_ms == pytest.approx([2 * (1 + index) for index in count])
    backward = [2 * (1000 + i) * step.needs_backward for i, step in enumerate(net.steps)]
    assert 0 in backward and timer.backward_ms == pytest.approx(backward)
    assert sum(timer.forward_ms) + sum(timer.backward_ms) == pytest.approx(total)
    timer.reset()
    assert sum(timer.forward_ms) + sum(timer.backward_ms) == 0
    net.close()


def test_input_layers_are_fed_zeros(tmp_path: Path) -> None:
    path = tmp_path / "deploy.prototxt"
    path.write_text(
        'layer { name: "in" type: "Input" top: "a" input_param { shape { dim: 2 dim: 3 } } }'
        'layer { name: "power" type: "Power" bottom: "a" top: "b" loss_weight: 2'
        " power_param { shift: 5 } }"
    )
    timer = LayerTimer(load_net(path))
    assert float(timer.forward()) == 2 * 5 * 6
    timer.backward()
    assert timer.finish() > 0


@pytest.fixture
def no_least_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PassTimer, "LEAST_MILLISECONDS", 0.0)


def watched(net: Net, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled with `batch`, `forward` (`scoring` without gradients) and `backward` as they go by."""
    seen: list[str] = []
    read, compute = net.read_sources, net.compute

    def read_sources() -> dict[str, Tensor]:
        seen.append("batch")
        return read()

    def forward(given: dict[str, Tensor], *, inner: bool = True) -> dict[str, Tensor]:
        seen.append("forward" if torch.is_grad_enabled() else "scoring")
        return compute(given, inner=inner)

    monkeypatch.setattr(net, "read_sources", read_sources)
    monkeypatch.setattr(net, "compute", forward)
    for parameter in net.layer("ip2").parameters():  # type: ignore[union-attr]
        parameter.register_hook(lambda gradient: seen.append("backward"))
        break
    return seen


@pytest.mark.usefixtures("no_least_time")
def test_whole_training_passes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    net = load("surgery_holmes")
    before = {name: blob.clone() for name, blob in net.state_dict().items()}
    seen = watched(net, monkeypatch)
    milliseconds = PassTimer(net).run(3)
    net.close()
    assert seen == ["batch", "forward", "backward"] * 4  # the first to warm up
    assert milliseconds > 0
    for name, blob in net.state_dict().items():
        assert torch.equal(blob, before[name])
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.usefixtures("no_least_time")
def test_whole_scoring_passes_go_forward_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    net = load_net("runs/surgery_holmes/train_val.prototxt", "TEST")
    seen = watched(net, monkeypatch)
    PassTimer(net).run(2)
    net.close()
    assert seen == ["batch", "scoring"] * 3


def test_short_passes_are_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PassTimer, "LEAST_MILLISECONDS", 30.0)
    path = tmp_path / "deploy.prototxt"
    path.write_text(
        'layer { name: "in" type: "Input" top: "a" input_param { shape { dim: 2 } } }'
        'layer { name: "power" type: "Power" bottom: "a" top: "b" }'
    )
    net = load_net(path, "TRAIN")
    mean = PassTimer(net).run(5)
    assert net.context.passes > 1 + 5
    assert (net.context.passes - 1) % 5 == 0
    assert mean * (net.context.passes - 1) >= 30
