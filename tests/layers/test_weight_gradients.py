"""Deferred weight gradients against autograd's own, in float64 and without a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor

from caffe_dns.layers.base import Context
from caffe_dns.layers.weight_gradients import SecondStream
from tests.layers.harness import draw
from tests.nets import input_layer, layer, make_net

FILLED = "weight_filler { type: 'xavier' } bias_filler { type: 'uniform' }"
CONV = f"num_output: 4 kernel_size: 3 {FILLED}"
LOSS = "layer { name: 'loss' type: 'Reduction' bottom: 'z' top: 'loss' loss_weight: 1 "
LOSS += "reduction_param { operation: SUMSQ } }"


class OnTheSpot(SecondStream):
    """Without a second stream."""

    def __init__(self) -> None:
        self._gradients: list[tuple[Tensor, Tensor]] = []
        self._kept: list[Tensor] = []
        self.joined = 0

    def _wait(self) -> None:
        self.joined = len(self._gradients)

    def _after(self, *inputs: Tensor) -> AbstractContextManager[object]:
        return nullcontext()


def gradients(text: str, deferred: OnTheSpot | None, passes: int = 1) -> dict[str, Tensor]:
    context = Context(seed=3)
    net = make_net(input_layer(data=(2, 4, 6, 5)) + text + LOSS, context=context).double()
    context.deferred_gradients = deferred
    for param in net.learnable_params:
        if param.is_mask:
            param.tensor.view(-1)[::3] = 0
    for _ in range(passes):
        net.loss(net({"data": draw(2, 4, 6, 5)})).backward()
        if deferred is not None:
            deferred.join()
    return {
        f"{param.layer.name}/{param.index}": param.tensor.grad
        for param in net.learnable_params
        if param.tensor.grad is not None
    }


@pytest.mark.parametrize(
    ("text", "deferrals"),
    [
        (layer("conv", "Convolution", "data", "z", f"convolution_param {{ {CONV} pad: 1 }}"), 2),
        (
            layer("conv", "Convolution", "data", "y", f"convolution_param {{ {CONV} group: 2 }}")
            + layer("relu", "ReLU", "y", "y")
            + layer(
                "ip", "InnerProduct", "y", "z", f"inner_product_param {{ num_output: 3 {FILLED} }}"
            ),
            4,
        ),
        (
            layer("conv", "CConvolution", "data", "y", f"convolution_param {{ {CONV} stride: 2 }}")
            + layer(
                "ip",
                "CInnerProduct",
                "y",
                "z",
                f"inner_product_param {{ num_output: 3 transpose: true axis: 2 {FILLED} }}",
            ),
            4,
        ),
        (
            layer(
                "conv",
                "Convolution",
                "data",
                "z",
                f"convolution_param {{ {CONV} bias_term: false }}",
            ),
            1,
        ),
        (
            layer(
                "conv",
                "Convolution",
                "data",
                "z",
                f"param {{ lr_mult: 0 }} convolution_param {{ {CONV} }}",
            ),
            1,
        ),
        # A weight that two layers share is given the sum.
        (
            "".join(
                layer(
                    name,
                    "InnerProduct",
                    "data",
                    top,
                    f"param {{ name: 'w' }} inner_product_param {{ num_output: 3 {FILLED} }}",
                )
                for name, top in (("a", "x"), ("b", "y"))
            )
            + "layer { name: 'sum' type: 'Eltwise' bottom: 'x' bottom: 'y' top: 'z' }",
            4,
        ),
        (
            layer("deconv", "Deconvolution", "data", "z", f"convolution_param {{ {CONV} }}"),
            0,
        ),
    ],
)
@pytest.mark.parametrize("passes", [1, 2])
def test_the_same_gradients(text: str, deferrals: int, passes: int) -> None:
    deferred = OnTheSpot()
    found = gradients(text, deferred, passes)
    wanted = gradients(text, None, passes)
    assert deferred.joined == deferrals
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_large_layers_go_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_dns.layers.weight_gradients.LARGE", 2 * 4 * 3 * 4 * 4 * 9)
    text = layer("conv", "Convolution", "data", "z", f"convolution_param {{ {CONV} }}")
    deferred = OnTheSpot()
    assert gradients(text, deferred).keys() == {"conv/0", "conv/1"}
    assert deferred.joined == 0
