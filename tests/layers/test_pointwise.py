"""1x1 convolutions against PyTorch's, in float64 and without a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.device import trial
from caffe_dns.device.trial import Trials
from caffe_dns.layers import convolution, pointwise
from caffe_dns.layers.base import Context
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.pointwise import Pointwise
from tests.layers.harness import draw
from tests.layers.test_weight_gradients import LOSS, OnTheSpot
from tests.nets import input_layer, layer, make_net

FILLED = "weight_filler { type: 'xavier' } bias_filler { type: 'uniform' }"


def exact_gradients(data: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Of the sum of the top's squares."""
    x, w, b = (blob.detach().contiguous().requires_grad_() for blob in (data, weight, bias))
    return torch.autograd.grad(F.conv2d(x, w, b).square().sum(), (x, w, b))


@pytest.mark.parametrize("deferred", [None, OnTheSpot()])
@pytest.mark.parametrize(("innermost", "is_faster"), [(False, True), (True, True), (True, False)])
def test_a_layer(
    deferred: OnTheSpot | None, innermost: bool, is_faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By matrices where channels are innermost and that is faster, and its top lies alike."""
    monkeypatch.setattr(convolution, "MATRIX_DEVICES", ("cpu",))
    monkeypatch.setattr(pointwise, "_trials", Trials())
    monkeypatch.setattr(trial, "_try", lambda *ways: is_faster)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    text = f"convolution_param {{ num_output: 16 kernel_size: 1 {FILLED} }}"
    context, shape = Context(seed=3), (2, 8, 6, 5)
    text = input_layer(data=shape) + layer("c", "Convolution", "data", "z", text) + LOSS
    net = make_net(text, context=context).double()
    data = draw(*shape)
    wanted = exact_gradients(data, *net.parameters())
    if innermost:
        data = data.contiguous(memory_format=torch.channels_last)
    if innermost and is_faster:
        monkeypatch.setattr(torch, "convolution", None)
        monkeypatch.setitem(convolution._CONVOLVE, 2, None)
    context.deferred_gradients = deferred
    tops = net.compute({"data": data.requires_grad_()})
    assert tops["z"].is_contiguous(memory_format=torch.channels_last) == innermost
    net.loss(tops).backward()
    if deferred is not None:
        deferred.join()
    for blob, exact in zip((data, *net.parameters()), wanted, strict=True):
        assert blob.grad is not None
        torch.testing.assert_close(blob.grad, exact)
    tried = {case[0] for case in pointwise._trials.found}  # type: ignore[index]
    assert tried == ({"top", "bottom", "weight"} if innermost else set())


def test_a_top_may_be_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a bias and a ReLU do, which autograd forbids for a view."""
    monkeypatch.setattr(Pointwise, "_pays", lambda *given: True)
    x = draw(2, 8, 6, 5).contiguous(memory_format=torch.channels_last)
    top = Pointwise((1, 1), (0, 0), (1, 1), 1).top(x, draw(16, 8, 1, 1), None)
    assert top._base is None and top.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "settings", ["kernel_size: 1 stride: 2", "kernel_size: 1 pad: 1", "kernel_size: 1 group: 2"]
)
def test_other_layers(settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "MATRIX_DEVICES", ("cpu",))
    text = f"convolution_param {{ num_output: 8 {settings} }}"
    net = make_net(input_layer(data=(2, 8, 6, 5)) + layer("c", "Convolution", "data", "z", text))
    conv = net.layer("c")
    assert isinstance(conv, BaseConvolution) and not isinstance(conv.convolved, Pointwise)
