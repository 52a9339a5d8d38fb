"""Layers that compute, as ONNX nodes: convolutions, products, pooling, normalisation.

Elementwise layers are in `onnx_neurons`, those that only move entries in `onnx_shapes`. Where ONNX
gives an attribute another meaning than Caffe, explicit nodes take its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import cast

import numpy as np
import torch

from caffe_dns.export.onnx_graph import FLOAT, INT64, Bottoms, converts
from caffe_dns.export.torch_names import batch_statistics
from caffe_dns.layers.arithmetic import Eltwise, Reduction, along
from caffe_dns.layers.batch_norm import BatchNorm
from caffe_dns.layers.convolution import BaseConvolution, Deconvolution
from caffe_dns.layers.inner_product import BaseInnerProduct
from caffe_dns.layers.normalization import LRN
from caffe_dns.layers.pooling import AVERAGES, Pooling, Window
from caffe_dns.layers.spp import SPP
from caffe_dns.proto.caffe_pb2 import (
    EltwiseParameter,
    PoolingParameter,
    ReductionParameter,
    SPPParameter,
)

# Convolution and products -----------------------------------------------------------------------


@converts("Convolution", "Deconvolution")
def convolution(at: Bottoms) -> list[str]:
    layer = cast(BaseConvolution, at.layer)
    if layer.channel_axis != 1 or not layer.num_spatial_axes:
        raise at.unsupported("a convolution with another axis than 1, or without spatial axes,")
    weight, bias = layer.effective()
    constants = [at.constant("weight", weight)]
    if bias is not None:
        constants.append(at.constant("bias", bias))
    operator = "ConvTranspose" if isinstance(layer, Deconvolution) else "Conv"
    missing = layer.missing(at.shapes[0][2:])
    paddings = [
        (before, behind + more)
        for (before, behind), more in zip(
            map(layer.padding, range(len(missing))), missing, strict=True
        )
    ]
    if min(map(min, paddings)) < 0:
        raise at.unsupported("a padding below 0")
    return [
        at.add(
            operator,
            value,
            *constants,
            kernel_shape=layer.kernel,
            strides=layer.stride,
            pads=[padding[end] for end in (0, 1) for padding in paddings],
            dilations=layer.dilation,
            group=layer.group,
        )
        for value in at.values
    ]


@converts("InnerProduct")
def inner_product(at: Bottoms) -> list[str]:
    layer = cast(BaseInnerProduct, at.layer)
    weight, bias = layer.effective()
    value, axis = at.values[0], layer.first_axis
    if axis == 1:
        if at.rank != 2:
            value = at.add("Flatten", value, axis=1)
        constants = [at.constant("weight", weight)]
        if bias is not None:
            constants.append(at.constant("bias", bias))
        return [at.add("Gemm", value, *constants, transB=int(not layer.transpose))]
    value = at.reshape(value, [*[0] * axis, -1])
    columns = weight if layer.transpose else weight.t()
    value = at.add("MatMul", value, at.constant("weight", columns))
    return [value if bias is None else at.add("Add", value, at.constant("bias", bias))]


@converts("Embed")
def embed(at: Bottoms) -> list[str]:
    weight, *bias = at.layer.blobs
    indices = at.add("Cast", at.values[0], to=INT64)
    value = at.add("Gather", at.constant("weight", weight), indices)
    return [at.add("Add", value, at.constant("bias", bias[0])) if bias else value]


# Pooling ----------------------------------------------------------------------------------------


@converts("Pooling")
def pooling(at: Bottoms) -> list[str]:
    layer = cast(Pooling, at.layer)
    height, width = at.shapes[0][2:]
    window = layer.window((height, width))
    if layer.num_tops > 1:
        return _maxima_and_places(at, at.values[0], window)
    return [_pooled(at, window, layer.method)]


@converts("SPP")
def spatial_pyramid_pooling(at: Bottoms) -> list[str]:
    layer = cast(SPP, at.layer)
    height, width = at.shapes[0][2:]
    method = getattr(PoolingParameter, SPPParameter.PoolMethod.Name(layer.method))
    levels = [_pooled(at, window, method) for window in layer.windows((height, width))]
    if len(levels) == 1:
        return levels
    return [at.add("Concat", *[at.reshape(level, [0, -1]) for level in levels], axis=1)]


def _pooled(at: Bottoms, window: Window, method: int) -> str:
    value = at.values[0]
    if method == PoolingParameter.MAX:
        lowest = float(torch.finfo(torch.float32).min)
        return _pool(at, "MaxPool", value, window, lowest)
    if method in AVERAGES:
        return _average(at, value, window, padding=method == PoolingParameter.AVE)
    # STOCHASTIC in a test: the mean of each window, weighted by the values.
    mean = _pool(at, "AveragePool", value, window, 0.0)
    squares = _pool(at, "AveragePool", at.add("Mul", value, value), window, 0.0)
    positive = at.add("Greater", mean, at.number("zero", 0))
    divisor = at.add("Where", positive, mean, at.number("one", 1))
    weighted = at.add("Div", squares, divisor)
    return at.add("Where", positive, weighted, at.number("nothing", 0))


def _maxima_and_places(at: Bottoms, value: str, window: Window) -> list[str]:
    height, width = at.shapes[0][2:]
    pads, outside = _pads(window, (height, width))
    if any(outside):
        raise at.unsupported("the second top of a Pooling with windows outside of the image")
    settings = {"kernel_shape": window.kernel, "strides": window.stride, "pads": pads}
    maxima, places = at.add_many("MaxPool", 2, value, **settings)
    # ONNX counts through all planes, Caffe in each by itself.
    places = at.add("Mod", places, at.integers("area", [height * width]))
    return [maxima, at.add("Cast", places, to=FLOAT)]


def _average(at: Bottoms, value: str, window: Window, *, padding: bool) -> str:
    """Sums divided by the windows' areas as Caffe counts them, at the border, too."""
    height, width = at.shapes[0][2:]
    mean = _pool(at, "AveragePool", value, window, 0.0)
    full = window.kernel[0] * window.kernel[1]
    factors = full / window.areas((height, width), torch.zeros(()), padding=padding)
    if bool((factors == 1).all()):
        return mean
    return at.add("Mul", mean, at.constant("border", factors))


def _pool(at: Bottoms, operator: str, value: str, window: Window, padding: float) -> str:
    """Full windows over the padded image: what ONNX does about partial ones is not used.

    A stride beyond the kernel can put the last windows outside of the image. ONNX has no padding
    for these: their values come behind the others.
    """
    pads, outside = _pads(window, at.shapes[0][2:])
    counted = {"count_include_pad": 1} if operator == "AveragePool" else {}
    value = at.add(
        operator, value, kernel_shape=window.kernel, strides=window.stride, pads=pads, **counted
    )
    if not any(outside):
        return value
    amounts = at.integers("outside", [0] * 6 + outside)
    return at.add("Pad", value, amounts, at.number("padding", padding))


def _pads(window: Window, image: Sequence[int]) -> tuple[list[int], list[int]]:
    """What ONNX's pooling pads, and how many rows and columns of windows lie outside."""
    left, right, top, bottom = window.margins((image[0], image[1]))
    before, after, outside = [top, left], [bottom, right], [0, 0]
    for axis in (0, 1):
        if after[axis] >= window.kernel[axis]:
            after[axis] -= window.stride[axis]
            outside[axis] = 1
    # Negative margins are pixels that no window reaches.
    return before + [max(pad, 0) for pad in after], outside


# Normalisation ----------------------------------------------------------------------------------


@converts("BatchNorm")
def batch_norm(at: Bottoms) -> list[str]:
    layer = cast(BatchNorm, at.layer)
    if at.rank < 2 or not layer.use_global_stats:
        raise at.unsupported("a BatchNorm of one axis, or with the statistics of the batch,")
    arrays = [blob.detach().numpy() for blob in layer.blobs]
    mean, variance = batch_statistics(arrays)
    weight, bias = arrays[3:] or (np.ones_like(mean), np.zeros_like(mean))
    constants = [
        at.constant("weight", weight),
        at.constant("bias", bias),
        at.constant("running_mean", mean),
        at.constant("running_var", variance),
    ]
    return [at.add("BatchNormalization", at.values[0], *constants, epsilon=layer.eps)]


@converts("LRN")
def lrn(at: Bottoms) -> list[str]:
    layer, value = cast(LRN, at.layer), at.values[0]
    if not layer.within:
        settings = {"alpha": layer.alpha, "beta": layer.beta, "bias": layer.k}
        return [at.add("LRN", value, size=layer.size, **settings)]
    side = layer.size
    mean = at.add(
        "AveragePool",
        at.add("Mul", value, value),
        kernel_shape=(side, side),
        pads=[side // 2] * 4,
        count_include_pad=1,
    )
    base = at.affine(mean, layer.alpha, 1.0)
    return [at.add("Div", value, at.add("Pow", base, at.number("beta", layer.beta)))]


@converts("MVN")
def mvn(at: Bottoms) -> list[str]:
    settings, value = at.layer.param.mvn_param, at.values[0]
    if at.rank < 4:
        value = at.add("Unsqueeze", value, at.integers("axes", range(at.rank, 4)))
    axes = (1, 2, 3) if settings.across_channels else (2, 3)
    centred = at.add("Sub", value, at.add("ReduceMean", value, axes=axes))
    if not settings.normalize_variance:
        return [centred]
    variance = at.add("ReduceMean", at.add("Mul", centred, centred), axes=axes)
    deviation = at.affine(at.add("Sqrt", variance), 1.0, settings.eps)
    return [at.add("Div", centred, deviation)]


@converts("Softmax")
def softmax(at: Bottoms) -> list[str]:
    axis = at.layer.axis(at.layer.param.softmax_param.axis, at.rank)
    return [at.add("Softmax", at.values[0], axis=axis)]


# Sums and products ------------------------------------------------------------------------------


@converts("Scale")
def scale(at: Bottoms) -> list[str]:
    names = ["weight", "bias"] if len(at.values) == 1 else ["bias"]
    axis = at.layer.param.scale_param.axis
    operands = [_along(at, axis), *_constants_along(at, axis, names)]
    value = at.values[0]
    for operator, operand in zip(("Mul", "Add"), filter(None, operands), strict=False):
        value = at.add(operator, value, operand)
    return [value]


@converts("Bias")
def bias(at: Bottoms) -> list[str]:
    axis = at.layer.param.bias_param.axis
    (operand,) = filter(None, [_along(at, axis), *_constants_along(at, axis, ["bias"])])
    return [at.add("Add", at.values[0], operand)]


def _along(at: Bottoms, axis: int) -> str | None:
    """The second bottom, if there is one, with axes behind it to broadcast over."""
    if len(at.values) == 1:
        return None
    rank = len(at.shapes[1])
    trailing = at.rank - axis % at.rank - rank
    if not rank or not trailing:
        return at.values[1]
    return at.add("Unsqueeze", at.values[1], at.integers("axes", range(rank, rank + trailing)))


def _constants_along(at: Bottoms, axis: int, names: Sequence[str]) -> list[str]:
    blobs = zip(names, at.layer.blobs, strict=False)
    return [at.constant(name, along(blob, axis, at.rank)) for name, blob in blobs]


@converts("Eltwise")
def eltwise(at: Bottoms) -> list[str]:
    layer = cast(Eltwise, at.layer)
    if layer.operation == EltwiseParameter.MAX:
        return [at.add("Max", *at.values)]
    if layer.operation == EltwiseParameter.PROD:
        return [reduce(lambda a, b: at.add("Mul", a, b), at.values)]
    terms = zip(at.values, layer.coefficients, strict=True)
    weighted = [at.affine(value, coefficient, 0.0) for value, coefficient in terms]
    return [reduce(lambda a, b: at.add("Add", a, b), weighted)]


_REDUCTIONS = {
    ReductionParameter.ASUM: "ReduceL1",
    ReductionParameter.SUMSQ: "ReduceSumSquare",
    ReductionParameter.MEAN: "ReduceMean",
}


@converts("Reduction")
def reduction(at: Bottoms) -> list[str]:
    layer, settings = cast(Reduction, at.layer), at.layer.param.reduction_param
    axes = range(layer.axis(settings.axis, at.rank), at.rank)
    if settings.operation == ReductionParameter.SUM:
        value = at.add("ReduceSum", at.values[0], at.integers("axes", axes), keepdims=0)
    else:
        operator = _REDUCTIONS[settings.operation]
        value = at.add(operator, at.values[0], axes=list(axes), keepdims=0)
    return [at.affine(value, layer.coefficient, 0.0)]


# Neurons ----------------------------------------------------------------------------------------
