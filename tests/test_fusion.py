"""BatchNorm and Scale as one pass against the two layers one after the other."""

from __future__ import annotations

import pytest
import torch

from caffe_dns import fusion
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, Phase
from tests.nets import input_layer, layer, make_net

DATA = input_layer(data=(5, 3, 4, 6))
CONV = layer(
    "conv",
    "Convolution",
    "data",
    "a",
    "convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: 'xavier' } }",
)
SCALE = "scale_param {{ filler {{ type: 'uniform' min: 0.5 max: 2 }} bias_term: {} }}"
LOSS = "layer { name: 'loss' type: 'Reduction' bottom: 'b' top: 'loss' loss_weight: 1 "
LOSS += "reduction_param { operation: SUMSQ } }"


def net_of(middle: str, phase: Phase = TRAIN) -> Net:
    text = DATA + CONV + middle
    text += layer("tanh", "TanH", "a", "b") + LOSS
    return make_net(text, phase=phase)


def results(net: Net) -> dict[str, torch.Tensor]:
    """Tops, gradients and statistics after two passes on the same data."""
    data = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        blobs = net({"data": data})
        net.loss(blobs).backward()
    found = {name: blob.detach() for name, blob in blobs.items()}
    for param in net.learnable_params:
        key = f"{param.layer.name}/{param.index}"
        found[key] = param.tensor.detach()
        if param.tensor.grad is not None:
            found[f"{key} gradient"] = param.tensor.grad
    return found


@pytest.mark.parametrize("phase", [TRAIN, TEST])
@pytest.mark.parametrize("bias", ["true", "false"])
@pytest.mark.parametrize("settings", ["", "batch_norm_param { use_global_stats: false }"])
def test_the_same_in_one_pass(
    phase: Phase, bias: str, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    middle = layer("bn", "BatchNorm", "a", "a", settings)
    middle += layer("scale", "Scale", "a", "a", SCALE.format(bias))
    apart = results(net_of(middle, phase))
    monkeypatch.setattr(fusion, "DEVICES", ("cpu",))
    net = net_of(middle, phase)
    assert len(net._scaled) == 1
    together = results(net)
    assert together.keys() == apart.keys()
    for name, wanted in apart.items():
        torch.testing.assert_close(together[name], wanted, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "middle",
    [
        layer("bn", "BatchNorm", "a", "a") + layer("scale", "Scale", "a", "d"),
        layer("bn", "BatchNorm", "a", "a") + layer("relu", "ReLU", "a", "a"),
        layer("bn", "BatchNorm", "a", "a")
        + layer("scale", "Scale", "a", "a", "scale_param { axis: 2 }"),
        layer("bn", "BatchNorm", "a", "a")
        + layer("scale", "Scale", "a", "a", "scale_param { num_axes: 2 }"),
        layer("scale", "Scale", "a", "a") + layer("bn", "BatchNorm", "a", "a"),
    ],
)
def test_what_does_not_belong_together(middle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "DEVICES", ("cpu",))
    assert net_of(middle)._scaled == {}


FILLED = "weight_filler { type: 'xavier' }"
OFFICIAL = f"num_output: 3 kernel_size: 2 {FILLED} bias_filler {{ type: 'gaussian' }}"
DENSE = f"num_output: 4 sparsity_term: false {FILLED}"
PLAIN = f"num_output: 2 bias_term: false {FILLED}"
MASKED = (
    DATA
    + CONV
    + layer("official", "CConvolution", "a", "c", f"convolution_param {{ {OFFICIAL} }}")
    + layer("dense", "InnerProduct", "c", "d", f"inner_product_param {{ {DENSE} }}")
    + layer("ip", "InnerProduct", "d", "b", f"inner_product_param {{ {PLAIN} }}")
    + LOSS
)


def test_masks_are_the_same_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(fusion, "DEVICES", devices)
        net = make_net(MASKED)
        assert len(net._masked) == 3 * len(devices)
        for param in net.learnable_params:
            if param.is_mask:
                param.tensor.view(-1)[::2] = 0
        found.append(results(net))
    apart, together = found
    assert together.keys() == apart.keys()
    for name, wanted in apart.items():
        torch.testing.assert_close(together[name], wanted, rtol=1e-6, atol=1e-7, msg=name)


def test_masks_are_applied_anew_in_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "DEVICES", ("cpu",))
    net = make_net(MASKED)
    data = {"data": torch.ones(5, 3, 4, 6)}
    assert net(data)["b"].abs().max() > 0
    for blob in net.params["ip"][1:]:
        blob.zero_()
    assert net(data)["b"].abs().max() == 0
