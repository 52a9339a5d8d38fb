"""The net's state_dict: layers' names and PyTorch's, from and to modules of PyTorch."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from caffe_dns.layers.base import Context
from caffe_dns.proto.caffe_pb2 import TEST
from tests.nets import input_layer, ip, layer, make_net

CONV = "convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: 'xavier' } }"
TEXT = (
    input_layer(data=(2, 3, 8, 8))
    + layer("conv1", "Convolution", "data", "conv1", CONV)
    + layer("bn1", "BatchNorm", "conv1", "conv1", "batch_norm_param { scale_bias: true }")
    + layer("slope", "PReLU", "conv1", "conv1")
    + ip("fc", "conv1")
)


def module() -> nn.Module:
    """The same net as PyTorch has it, with statistics that are not the first ones."""
    torch.manual_seed(3)
    net = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 4, 3),
            bn1=nn.BatchNorm2d(4),
            slope=nn.PReLU(4),
            flatten=nn.Flatten(),
            fc=nn.Linear(4 * 6 * 6, 5),
        )
    )
    net(torch.rand(9, 3, 8, 8))
    return net.eval()


def test_names() -> None:
    assert list(make_net(TEXT).state_dict()) == [
        "conv1.weight",
        "conv1.bias",
        "conv1.weight_mask",
        "bn1.weight",
        "bn1.bias",
        "bn1.mean",
        "bn1.variance",
        "bn1.scale_factor",
        "slope.weight",
        "fc.weight",
        "fc.bias",
        "fc.weight_mask",
    ]


def test_names_of_magnitude_masks_and_recurrent_layers() -> None:
    official = layer(
        "conv", "CConvolution", "data", "conv", "convolution_param { num_output: 4 kernel_size: 3 }"
    )
    assert list(make_net(input_layer(data=(2, 3, 8, 8)) + official).state_dict()) == [
        f"conv.{name}" for name in ("weight", "bias", "weight_mask", "bias_mask", "moments")
    ]
    recurrent = "recurrent_param { num_output: 4 }"
    text = input_layer(x=(2, 3, 5), cont=(2, 3), static=(3, 6))
    lstm = make_net(text + layer("l", "LSTM", "x cont static", "h", recurrent))
    assert [name for name, _ in lstm.named_parameters()] == [
        f"l.{name}" for name in ("W_xc", "b_c", "W_xc_static", "W_hc")
    ]
    rnn = make_net(text + layer("r", "RNN", "x cont", "h", recurrent))
    assert [name for name, _ in rnn.named_parameters()] == [
        f"r.{name}" for name in ("W_xh", "b_h", "W_hh", "W_ho", "b_o")
    ]


def test_a_module_of_pytorch_goes_in_and_out() -> None:
    theirs = module()
    net = make_net(TEXT, TEST, Context(surgery=False))
    net.load_state_dict(theirs.state_dict())
    data = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(net(data)["fc"], theirs(data))

    others = module()
    others.load_state_dict(
        {name: value for name, value in net.state_dict().items() if "bn1" not in name},
        strict=False,
    )
    for name in ("conv1.weight", "conv1.bias", "slope.weight", "fc.weight", "fc.bias"):
        assert torch.equal(others.get_parameter(name), theirs.get_parameter(name))


def test_half_a_batch_norm_is_missed() -> None:
    state = module().state_dict()
    del state["bn1.running_var"]
    net = make_net(TEXT, TEST, Context(surgery=False))
    with pytest.raises(RuntimeError, match=r'Missing key.*"bn1\.variance"'):
        net.load_state_dict(state)


def test_a_net_goes_into_one_of_its_kind() -> None:
    one, other = make_net(TEXT, TEST, Context(seed=1)), make_net(TEXT, TEST, Context(seed=2))
    with torch.no_grad():
        one.params["fc"][2][0] = 0
    other.load_state_dict(one.state_dict())
    data = torch.rand(2, 3, 8, 8)
    assert torch.equal(one(data)["fc"], other(data)["fc"])
    assert not other(data)["fc"][:, 0].any()


def test_shared_weights_stay_shared() -> None:
    shared = "param { name: 'w' } param { name: 'b' }"
    net = make_net(input_layer(data=(2, 5)) + ip("a", "data", shared) + ip("b", "a", shared))
    state = {name: torch.full_like(value, 2) for name, value in net.state_dict().items()}
    net.load_state_dict(state)
    assert net.params["a"][0] is net.params["b"][0]
    assert len(list(net.parameters())) == 2
