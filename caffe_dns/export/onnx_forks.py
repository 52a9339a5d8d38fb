"""Layers of forks as ONNX nodes. Layers of BVLC's Caffe that compute are in `onnx_layers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from caffe_dns.export.onnx_graph import INT64, Bottoms, converts
from caffe_dns.layers.forks.batch_norm import BN
from caffe_dns.layers.forks.channels import Reorg, ShuffleChannel
from caffe_dns.layers.forks.dense_block import EPS, DenseBlock
from caffe_dns.layers.forks.neuron import SIX, Insanity, ReLU6, SeLu, Sparsify
from caffe_dns.layers.forks.resize import Interp, Upsample
from caffe_dns.layers.forks.roi import ROIPooling


@converts("ROIPooling")
def roi_pooling(at: Bottoms) -> list[str]:
    layer, regions = cast(ROIPooling, at.layer), at.values[1]
    if layer.pad_ratio:
        raise at.unsupported("a ROIPooling with pad_ratio")
    if len(at.shapes[1]) != 2:
        regions = at.reshape(regions, [-1, 5])
    settings = {"pooled_shape": layer.size, "spatial_scale": layer.scale}
    return [at.add("MaxRoiPool", at.values[0], regions, **settings)]


@converts("BN")
def batch_norm(at: Bottoms) -> list[str]:
    layer, value = cast(BN, at.layer), at.values[0]
    slope, bias, *running = layer.blobs
    if layer.affine_only:
        around = (-1, *[1] * (at.rank - 2))
        value = at.add("Mul", value, at.constant("weight", slope.reshape(around)))
        return [at.add("Add", value, at.constant("bias", bias.reshape(around)))]
    if not running:
        raise at.unsupported("a BN with the statistics of the batch (bn_mode: LEARN)")
    names = ("weight", "bias", "running_mean", "running_var")
    constants = [
        at.constant(name, blob.flatten()) for name, blob in zip(names, layer.blobs, strict=True)
    ]
    return [at.add("BatchNormalization", value, *constants, epsilon=layer.eps)]


@converts("DenseBlock")
def dense_block(at: Bottoms) -> list[str]:
    layer, value = cast(DenseBlock, at.layer), at.values[0]
    for index in range(layer.transitions):
        filters, *rest = layer.transition(index)
        constants = [
            at.constant(f"{name}{index}", blob.flatten())
            for name, blob in zip(("factor", "shift", "mean", "variance"), rest, strict=True)
        ]
        normalized = at.add("BatchNormalization", value, *constants, epsilon=EPS)
        filters_name = at.constant(f"filters{index}", filters)
        more = at.add("Conv", at.add("Relu", normalized), filters_name, pads=[1, 1, 1, 1])
        value = at.add("Concat", value, more, axis=1)
    return [value]


@converts("Sparsify")
def sparsify(at: Bottoms) -> list[str]:
    threshold = cast(Sparsify, at.layer).threshold
    return [at.add("Shrink", at.values[0], bias=threshold, lambd=threshold)]


@converts("Interp")
def interp(at: Bottoms) -> list[str]:
    layer, value = cast(Interp, at.layer), at.values[0]
    first, last = layer.cut
    if first or last:
        height, width = at.shapes[0][2:]
        places = [
            at.integers("starts", [first, first]),
            at.integers("ends", [height - last, width - last]),
            at.integers("axes", [2, 3]),
        ]
        value = at.add("Slice", value, *places)
    settings = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    return [resize(at, value, at.top_shapes[0][2:], **settings)]


@converts("Upsample")
def upsample(at: Bottoms) -> list[str]:
    layer, value = cast(Upsample, at.layer), at.values[0]
    if not layer.by_mask:
        settings = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return [resize(at, value, at.top_shapes[0][2:], mode="nearest", **settings)]
    height, width = at.top_shapes[0][2:]
    places = at.add("Cast", at.reshape(at.values[1], [0, 0, -1]), to=INT64)
    nothing = at.add("ConstantOfShape", _shape_with(at, value, [height * width]))
    planes = at.add("ScatterElements", nothing, places, at.reshape(value, [0, 0, -1]), axis=2)
    return [at.reshape(planes, [0, 0, height, width])]


def resize(at: Bottoms, value: str, extents: Sequence[int], **settings: str) -> str:
    """The value N x C x H x W in another size."""
    size = _shape_with(at, value, extents)
    return at.add("Resize", value, "", "", size, **settings)


def _shape_with(at: Bottoms, value: str, extents: Sequence[int]) -> str:
    """The value's first two extents, and these."""
    first = at.integers("start", [0]), at.integers("end", [2])
    planes = at.add("Slice", at.add("Shape", value), *first)
    return at.add("Concat", planes, at.integers("extents", extents), axis=0)


@converts("Axpy")
def axpy(at: Bottoms) -> list[str]:
    factors, first, second = at.values
    missing = range(len(at.shapes[0]), len(at.shapes[1]))
    if missing:
        factors = at.add("Unsqueeze", factors, at.integers("axes", missing))
    return [at.add("Add", at.add("Mul", factors, first), second)]


@converts("ChannelScale")
def channel_scale(at: Bottoms) -> list[str]:
    factors = at.reshape(at.values[1], [0, 1, *at.shapes[0][2:]])
    return [at.add("Mul", at.values[0], factors)]


@converts("ShuffleChannel")
def shuffle_channel(at: Bottoms) -> list[str]:
    layer, (_, channels, *places) = cast(ShuffleChannel, at.layer), at.shapes[0]
    groups = at.reshape(at.values[0], [0, layer.group, channels // layer.group, *places])
    axes = [0, 2, 1, *range(3, len(places) + 3)]
    return [at.reshape(at.add("Transpose", groups, perm=axes), [0, channels, *places])]


@converts("Reorg")
def reorg(at: Bottoms) -> list[str]:
    layer, (_, channels, height, width) = cast(Reorg, at.layer), at.shapes[0]
    stride = layer.stride
    fewer = channels // stride**2
    if layer.reverse:
        squares = at.reshape(at.values[0], [0, stride, stride, fewer, height, width])
        axes = (0, 3, 4, 1, 5, 2)
    else:
        squares = at.reshape(at.values[0], [0, fewer, height, stride, width, stride])
        axes = (0, 3, 5, 1, 2, 4)
    return [at.reshape(at.add("Transpose", squares, perm=axes), [0, *at.top_shapes[0][1:]])]


@converts("Insanity")
def insanity(at: Bottoms) -> list[str]:
    return [at.add("LeakyRelu", *at.values, alpha=cast(Insanity, at.layer).slope)]


@converts("Mish")
def mish(at: Bottoms) -> list[str]:
    return [at.add("Mul", *at.values, at.add("Tanh", at.add("Softplus", *at.values)))]


@converts("SeLu")
def selu(at: Bottoms) -> list[str]:
    layer = cast(SeLu, at.layer)
    return [at.add("Selu", *at.values, alpha=layer.alpha, gamma=layer.scale)]


@converts("SeLuDropout")
def selu_dropout(at: Bottoms) -> list[str]:
    return at.values


@converts("ContinuationIndicator")
def continuation_indicator(at: Bottoms) -> list[str]:
    """A constant, for batches of the net's size."""
    at.graph.fixed_batch = True
    bottoms = [torch.zeros(()).expand(shape) for shape in at.shapes]
    return [at.constant("indicator", at.layer(*bottoms))]


@converts("ReLU6")
def relu6(at: Bottoms) -> list[str]:
    slope = cast(ReLU6, at.layer).negative_slope
    value = at.add("LeakyRelu", *at.values, alpha=slope) if slope else at.add("Relu", *at.values)
    return [at.add("Min", value, at.number("six", SIX))]
