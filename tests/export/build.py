"""Nets with random weights for the tests of exports."""

from __future__ import annotations

from pathlib import Path

import torch

from caffe_dns import load_net
from caffe_dns.export.deploy import deploy
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.net import Net
from caffe_dns.proto.upgrade import read_net
from caffe_dns.weights import save_weights

#: Layers in which PyTorch, ONNX and OpenCV do not all do by themselves what Caffe does.
CONVOLUTIONAL = """
name: "small"
layer {
  name: "in" type: "Input" top: "data"
  input_param { shape { dim: 2 dim: 4 dim: 13 dim: 10 } }
}
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 6 kernel_h: 3 kernel_w: 2 stride: 1 pad_h: 1 pad_w: 0 group: 2 }
}
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" batch_norm_param { eps: 0.001 } }
layer { name: "scale1" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" relu_param { negative_slope: 0.1 } }
layer {
  name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 }
}
layer {
  name: "norm1" type: "LRN" bottom: "pool1" top: "norm1"
  lrn_param { local_size: 3 alpha: 0.5 beta: 0.75 k: 2 }
}
layer {
  name: "pool2" type: "Pooling" bottom: "norm1" top: "pool2"
  pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }
}
layer {
  name: "conv2" type: "Convolution" bottom: "pool2" top: "conv2"
  convolution_param { num_output: 5 kernel_size: 2 bias_term: false dilation: 2 pad: 1 }
}
layer { name: "side" type: "Convolution" bottom: "pool2" top: "side"
  convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "small" type: "Pooling" bottom: "side" top: "small"
  pooling_param { pool: MAX kernel_size: 2 stride: 1 round_mode: FLOOR } }
layer { name: "ip" type: "InnerProduct" bottom: "conv2" top: "ip"
  inner_product_param { num_output: 7 } }
layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" }
layer { name: "flat" type: "Flatten" bottom: "small" top: "flat" }
layer { name: "both" type: "Concat" bottom: "ip" bottom: "flat" top: "both" }
layer { name: "prob" type: "Softmax" bottom: "both" top: "prob" }
"""


def randomize(net: Net, seed: int = 1) -> None:
    """Give every parameter a random value, and every statistic one that a variance may have."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for step in net.steps:
            for index, blob in enumerate(step.layer.blobs):
                if index not in step.layer.mask_indices:
                    blob.copy_(0.5 * torch.randn(blob.shape, generator=generator))
                if step.layer.type == "BatchNorm" or (step.layer.type == "BN" and index == 3):
                    blob.abs_().add_(0.5)


def small_model(
    text: str, folder: Path, seed: int = 1, batch: int = 1
) -> tuple[UnmaskedModel, Net]:
    """A net of this definition with random weights, saved and loaded as a plain model."""
    definition, weights = folder / "net.prototxt", folder / "net.caffemodel"
    definition.write_text(text)
    net = load_net(definition)
    randomize(net, seed)
    save_weights(net, weights)
    described = deploy(read_net(definition).message, batch=batch)
    return UnmaskedModel.load(described, str(weights)), net


def random_inputs(net: Net, seed: int = 2, batch: int | None = None) -> dict[str, torch.Tensor]:
    """Something for every input, of the net's shapes or with this many items."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {blob: net.blob_shapes[blob] for blob in net.inputs}
    return {
        blob: torch.randn((batch or shape[0], *shape[1:]), generator=generator)
        for blob, shape in shapes.items()
    }
