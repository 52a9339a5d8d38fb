"""Blobs that a Concat joins, made side by side; kernels are interpreted where there is no GPU."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.layers.base import Context
from caffe_dns.net import Net, fusion
from caffe_dns.net.joining import Joined
from tests.nets import input_layer, layer, make_net

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
FORMATS = [torch.contiguous_format, torch.channels_last]


def branch(name: str, bottom: str, outputs: int) -> str:
    """A convolution and its ReLU."""
    settings = f"num_output: {outputs} kernel_size: 3 pad: 1 weight_filler {{ type: 'xavier' }} "
    settings += "bias_filler { type: 'uniform' min: -1 max: 1 }"
    return layer(name, "Convolution", bottom, name, f"convolution_param {{ {settings} }}") + layer(
        f"{name}_relu", "ReLU", name, name
    )


def concat(bottoms: str, settings: str = "") -> str:
    read = " ".join(f"bottom: '{bottom}'" for bottom in bottoms)
    return f"layer {{ name: 'join' type: 'Concat' {read} top: 'j' {settings} }}"


END = branch("e", "j", 2) + (
    "layer { name: 'loss' type: 'Reduction' bottom: 'e' top: 'loss' loss_weight: 1 "
    "reduction_param { operation: SUMSQ } }"
)


MIDDLES = {
    "two": branch("a", "data", 3) + branch("b", "data", 2) + concat("ab"),
    "in the other order": branch("a", "data", 3) + branch("b", "data", 2) + concat("ba"),
    "three": branch("b", "data", 5)
    + branch("a", "data", 3)
    + branch("c", "data", 4)
    + concat("abc", "concat_param { axis: 1 }"),
    "another layer": branch("a", "data", 3) + layer("t", "TanH", "data", "t") + concat("at"),
    "another axis": branch("a", "data", 3)
    + branch("b", "data", 3)
    + concat("ab", "concat_param { axis: 2 }"),
}


def results(net: Net, memory_format: torch.memory_format) -> tuple[bool, dict[str, Tensor]]:
    """Whether a joined blob was copied, and the loss and all gradients."""
    data = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(2))
    data = data.to(DEVICE, memory_format=memory_format).requires_grad_()
    copied = False
    with pytest.MonkeyPatch.context() as patch:
        cat = torch.cat

        def note(tensors: list[Tensor], dim: int = 0) -> Tensor:
            nonlocal copied
            copied = True
            return cat(tensors, dim)

        patch.setattr(torch, "cat", note)
        net.loss(net.compute({"data": data}, inner=False)).backward()
    assert data.grad is not None
    found = {"data": data.grad}
    for param in net.learnable_params:
        if param.tensor.grad is not None:
            found[f"{param.layer.name} {param.index}"] = param.tensor.grad
    return copied, found


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", list(MIDDLES))
def test_side_by_side(
    case: str, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = input_layer(data=(3, 4, 5, 6)) + MIDDLES[case] + END
    joins = "another" not in case
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(fusion, "DEVICES", ())
    plain = make_net(text, context=Context(device=DEVICE))
    _, wanted = results(plain, memory_format)
    monkeypatch.setattr(fusion, "DEVICES", (DEVICE.type,))
    monkeypatch.setattr(kernels, "suit", lambda blob: True)
    net = make_net(text, context=Context(device=DEVICE))
    groups = net.fusion.layers[False].values()
    assert any(isinstance(group, Joined) for group in groups) == joins
    copied, found = results(net, memory_format)
    assert copied == (not joins or memory_format == torch.contiguous_format)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("axis", [4, -5])
def test_other_axes_than_images_have(axis: int) -> None:
    """They were looked up among the four of images, and refused, whatever the bottoms had."""
    text = input_layer(a=(1, 2, 3, 4, 5), b=(1, 2, 3, 4, 5))
    net = make_net(text + layer("c", "Concat", "a b", "c", f"concat_param {{ axis: {axis} }}"))
    a, b = torch.rand(1, 2, 3, 4, 5), torch.rand(1, 2, 3, 4, 5)
    assert torch.equal(net({"a": a, "b": b})["c"], torch.cat([a, b], axis))
