"""LSTM and RNN in ONNX, against the layers that recorded cases hold to Caffe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.export.build import random_inputs, small_model

pytest.importorskip("onnx", reason="needs the package onnx")
pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")

from caffe_dns.export.onnx_file import to_onnx
from tests.export.test_onnx_file import assert_same

INPUTS = {
    "x": "dim: 4 dim: 3 dim: 2 dim: 5",
    "marks": "dim: 4 dim: 3",
    "static": "dim: 3 dim: 6",
    "h": "dim: 1 dim: 3 dim: 7",
    "c": "dim: 1 dim: 3 dim: 7",
}


@pytest.mark.parametrize("with_static", [False, True])
@pytest.mark.parametrize("exposed", [False, True])
@pytest.mark.parametrize(("type", "states"), [("LSTM", ["h", "c"]), ("RNN", ["h"])])
def test_sequences(
    type: str, states: list[str], exposed: bool, with_static: bool, tmp_path: Path
) -> None:
    bottoms = ["x", "marks", *["static"] * with_static, *states * exposed]
    tops = ["top", *[f"last_{name}" for name in states] * exposed]
    text = "".join(f'input: "{name}" input_shape {{ {INPUTS[name]} }}\n' for name in bottoms)
    text += f'layer {{ name: "layer" type: "{type}"'
    text += "".join(f' bottom: "{name}"' for name in bottoms)
    text += "".join(f' top: "{name}"' for name in tops)
    text += f""" recurrent_param {{ num_output: 7 expose_hidden: {str(exposed).lower()}
      weight_filler {{ type: "uniform" min: -0.7 max: 0.7 }}
      bias_filler {{ type: "uniform" min: -0.7 max: 0.7 }} }} }}"""
    model, net = small_model(text, tmp_path, batch=4)  # the timesteps
    inputs = random_inputs(net)
    inputs["marks"] = (inputs["marks"] > 0).float()
    assert 0 < inputs["marks"].mean() < 1
    assert torch.all(inputs["marks"][1:].sum(0) > 0)
    assert_same(to_onnx(model), net, inputs)
