"""ONNX nodes for layers of forks, run by onnxruntime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.export.build import random_inputs, small_model

pytest.importorskip("onnx", reason="needs the package onnx")
pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")

from caffe_dns.export.onnx_file import to_onnx
from tests.export.test_onnx_file import assert_same, body, one
from tests.nets import input_layer, layer

CONVOLUTION = "num_output: 3 kernel_size: 3 pad: 1"
LAYERS = {
    "depthwise": one("DepthwiseConvolution", f"convolution_param {{ {CONVOLUTION} group: 3 }}"),
    "dw": one("ConvolutionDepthwise", f"convolution_param {{ {CONVOLUTION} stride: 2 }}"),
    "dropout": one("Dropout", "dropout_param { dropout_ratio: 0.3 scale_train: false }"),
    "ceil_mode": one("Pooling", "pooling_param { kernel_size: 2 stride: 2 ceil_mode: false }"),
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layer(name: str, tmp_path: Path) -> None:
    model, net = small_model(body(LAYERS[name]), tmp_path, batch=2)
    assert_same(to_onnx(model), net, random_inputs(net))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1, 1)])
def test_roi_pooling(shape: tuple[int, ...], tmp_path: Path) -> None:
    settings = "roi_pooling_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.125 }"
    text = input_layer(data=(2, 3, 9, 7), rois=shape)
    text += layer("pool", "ROIPooling", "data rois", "pool", settings)
    model, net = small_model(text, tmp_path)
    regions = [[0, 8, 16, 50, 60], [1, 0, 0, 55, 71], [1, 30, 30, 90, 99], [0, 9, 9, 9, 9]]
    inputs = {**random_inputs(net), "rois": torch.tensor(regions).float().view(shape)}
    assert_same(to_onnx(model), net, inputs)
