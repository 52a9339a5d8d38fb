"""What each type of layer adds to a program.

Weights are those at the time the program is made, with masks applied; zeros are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
from torch import Tensor

from caffe_dns.layers.arithmetic import Scale
from caffe_dns.layers.base import Layer, Shape
from caffe_dns.layers.batch_norm import BatchNorm
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.inner_product import BaseInnerProduct
from caffe_dns.layers.neuron import ReLU
from caffe_dns.layers.pooling import Pooling
from caffe_dns.layers.shape import Flatten
from caffe_dns.layers.softmax import Softmax
from caffe_dns.proto.caffe_pb2 import PoolingParameter
from caffe_dns.sparse import kernels
from caffe_dns.sparse.tables import Planes, Sums, Tables

Adder = Callable[[Layer, Tables], None]


def _numbers(blob: Tensor) -> np.ndarray:
    return blob.detach().double().numpy()


def _shifts(blob: Tensor | None, count: int) -> np.ndarray:
    """What is added to each channel: nothing without a bias."""
    return np.zeros(count) if blob is None else _numbers(blob)


def _convolution(layer: Layer, tables: Tables) -> None:
    conv = cast(BaseConvolution, layer)
    weight, bias = conv.effective()
    matrix = _numbers(weight)
    outputs, shared = matrix.shape[:2]
    height, width = (conv.output_extent(tables.size[axis], axis) for axis in (0, 1))
    (pad_h, pad_w), (stride_h, stride_w) = conv.pad, conv.stride
    sums = Sums(outputs, height, width, shared, (pad_h, pad_w), (stride_h, stride_w))
    for number, (weights, shift) in enumerate(zip(matrix, _shifts(bias, outputs), strict=True)):
        sums.append(weights, shift, number * conv.group // outputs * shared, conv.dilation)
    tables.add_sums(sums)


def _inner_product(layer: Layer, tables: Tables) -> None:
    product = cast(BaseInnerProduct, layer)
    weight, bias = product.effective()
    matrix = _numbers(weight.t() if product.transpose else weight)
    image = (tables.channels, *tables.size)
    sums = Sums(len(matrix), 1, 1, tables.channels)
    for weights, shift in zip(matrix, _shifts(bias, len(matrix)), strict=True):
        sums.append(weights.reshape(image), shift)
    tables.add_sums(sums)


def _relu(layer: Layer, tables: Tables) -> None:
    tables.rectify()


def _pooling(layer: Layer, tables: Tables) -> None:
    pooling = cast(Pooling, layer)
    window = pooling.window(tables.size)
    size = window.output_size(tables.size)
    tables.add(
        kernels.MAX if pooling.is_max else kernels.AVERAGE,
        Planes.dense(tables.channels, *size),
        stride_h=window.stride[0],
        stride_w=window.stride[1],
        kernel_h=window.kernel[0],
        kernel_w=window.kernel[1],
        pad_h=window.pad[0],
        pad_w=window.pad[1],
    )


def _batch_norm(layer: Layer, tables: Tables) -> None:
    norm = cast(BatchNorm, layer)
    mean, variance = (_numbers(blob) for blob in norm.global_stats())
    factor = 1 / np.sqrt(variance + norm.eps)
    tables.add_line(factor, -mean * factor)


def _scale(layer: Layer, tables: Tables) -> None:
    factor, *shift = layer.blobs
    tables.add_line(_numbers(factor), _shifts(shift[0] if shift else None, len(factor)))


def _softmax(layer: Layer, tables: Tables) -> None:
    tables.add(kernels.SOFTMAX, tables.planes)


def _flatten(layer: Layer, tables: Tables) -> None:
    """Every place a channel; rows that go on beyond their width are made as short as that first."""
    image = tables.planes
    if image.plane != image.height * image.width:
        dense = Planes.dense(image.channels, image.height, image.width)
        tables.add(kernels.AVERAGE, dense, stride_h=1, stride_w=1, kernel_h=1, kernel_w=1)
    tables.planes = Planes.dense(image.channels * image.height * image.width)


def _nothing(layer: Layer, tables: Tables) -> None:
    """What leaves all numbers as they are."""


def adder(layer: Layer, shape: Shape) -> Adder | None:
    """What adds a layer with a bottom of this shape to a program; None if nothing does."""
    images = len(shape) == 4
    if layer.type in ("Convolution", "CConvolution"):
        conv = cast(BaseConvolution, layer)
        even = images and conv.channel_axis == 1 and not any(conv.beyond)
        even = even and not any(conv.missing(shape[2:]))
        return _convolution if even else None
    if layer.type in ("InnerProduct", "CInnerProduct"):
        return _inner_product if cast(BaseInnerProduct, layer).first_axis == 1 else None
    if isinstance(layer, ReLU):
        return _relu if layer.negative_slope == 0 else None
    if isinstance(layer, Pooling):
        average = layer.method == PoolingParameter.AVE
        even = images and layer.window((shape[2], shape[3])).end is None
        return _pooling if even and (layer.is_max or average) else None
    if isinstance(layer, BatchNorm):
        return _batch_norm if layer.use_global_stats and not layer.scale_bias else None
    if isinstance(layer, Scale):
        flat = all(blob.dim() == 1 for blob in layer.blobs)
        axis = layer.param.scale_param.axis
        return _scale if flat and axis == 1 and len(layer.param.bottom) == 1 else None
    if isinstance(layer, Softmax):
        axis = layer.param.softmax_param.axis
        return _softmax if len(shape) == 2 and axis == 1 else None
    if isinstance(layer, Flatten):
        settings = layer.param.flatten_param
        return _flatten if settings.axis == 1 and settings.end_axis == -1 else None
    scales = layer.param.dropout_param.scale_train
    return _nothing if layer.type == "Dropout" and scales else None
