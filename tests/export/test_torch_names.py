"""Weights under PyTorch's names, in PyTorch's own modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from caffe_dns.errors import CaffeError
from caffe_dns.export.safetensors_file import to_safetensors
from caffe_dns.export.torch_names import named_arrays
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.text import parse_text
from tests.export.build import random_inputs, small_model

NET = """
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 9 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 kernel_size: 3 group: 2 } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "prelu" type: "PReLU" bottom: "conv" top: "conv" }
layer { name: "up" type: "Deconvolution" bottom: "conv" top: "up"
  convolution_param { num_output: 3 kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "up" top: "ip1"
  inner_product_param { num_output: 5 transpose: true } }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 7 bias_term: false } }
"""


class Twin(nn.Module):
    """The same net of PyTorch's modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.bn = nn.BatchNorm2d(6, eps=1e-5, affine=False)
        self.prelu = nn.PReLU(6)
        self.up = nn.ConvTranspose2d(6, 3, 2, stride=2)
        self.ip1 = nn.Linear(3 * 14 * 12, 5)
        self.ip2 = nn.Linear(5, 7, bias=False)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        up: torch.Tensor = self.up(self.prelu(self.bn(self.conv(data))))
        result: torch.Tensor = self.ip2(self.ip1(up.flatten(1)))
        return result


def test_pytorch_takes_all_of_them(tmp_path: Path) -> None:
    model, net = small_model(NET, tmp_path)
    twin = Twin().eval()
    twin.load_state_dict({name: torch.tensor(v) for name, v in named_arrays(model).items()})
    inputs = random_inputs(net)
    with torch.no_grad():
        np.testing.assert_allclose(twin(inputs["data"]), net(inputs)["ip2"], rtol=1e-4, atol=1e-5)


def test_other_layers(tmp_path: Path) -> None:
    text = NET.replace('name: "ip2" type: "InnerProduct"', 'name: "s" type: "Scale"').replace(
        "inner_product_param { num_output: 7 bias_term: false }", "scale_param { bias_term: true }"
    )
    text += 'layer { name: "b" type: "Bias" bottom: "ip1" top: "b" }'
    text += (
        'layer { name: "two" type: "Scale" bottom: "ip1" bottom: "b" top: "two"'
        " scale_param { axis: 0 bias_term: true } }"
        'layer { name: "p" type: "Parameter" top: "p"'
        " parameter_param { shape { dim: 2 dim: 5 } } }"
        'layer { name: "e" type: "Eltwise" bottom: "two" bottom: "p" top: "e" }'
    )
    model, _ = small_model(text, tmp_path, batch=2)
    shapes = {name: array.shape for name, array in named_arrays(model).items()}
    assert shapes["s.weight"] == shapes["s.bias"] == shapes["b.bias"] == (5,)
    assert shapes["two.bias"] == (2, 5)
    assert shapes["p.blob0"] == (2, 5)
    assert "two.weight" not in shapes


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors", reason="needs the package safetensors")
    from safetensors.numpy import load

    model, _ = small_model(NET, tmp_path)
    raw = to_safetensors(model)
    loaded, expected = load(raw), named_arrays(model)
    assert loaded.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(loaded[name], array)
    file = tmp_path / "x.safetensors"
    file.write_bytes(raw)
    with safetensors.safe_open(file, "np") as opened:
        definition = parse_text(opened.metadata()["prototxt"], NetParameter).message
    assert definition == model.definition.param


def test_a_name_may_come_once(tmp_path: Path) -> None:
    model, _ = small_model(NET, tmp_path)
    model.definition.param.layer[-1].name = "ip1"
    with pytest.raises(CaffeError, match="layer 'ip1': is the name of two layers"):
        named_arrays(model)
