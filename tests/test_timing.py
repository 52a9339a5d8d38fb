"""Layer-by-layer passes: their gradients are those of the whole net, and their times add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from caffe_dns import load_net
from caffe_dns.net import Net
from caffe_dns.timing import LayerTimer
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


def test_times_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    net = load("bn_inception")
    timer = LayerTimer(net)
    total = timer.run() + timer.run()
    assert all(milliseconds > 0 for milliseconds in timer.forward_ms)
    needs_backward = {step.layer.name for step in net.steps if step.needs_backward}
    times = {step.layer.name: time for step, time in zip(net.steps, timer.backward_ms, strict=True)}
    quickest = min(times[name] for name in needs_backward)
    assert quickest > max(time for name, time in times.items() if name not in needs_backward)
    # What is missing lies between the two halves of a pass.
    assert sum(timer.forward_ms) + sum(timer.backward_ms) == pytest.approx(total, rel=0.05)
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
