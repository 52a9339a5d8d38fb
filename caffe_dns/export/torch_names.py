"""Weights under PyTorch's names.

A layer `conv1` gives `conv1.weight` and `conv1.bias`, laid out as in the corresponding PyTorch
module. Blobs without such a name in PyTorch are called `LAYER.blob0`, `LAYER.blob1`, ….
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from caffe_dns.errors import CaffeError
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.proto.caffe_pb2 import LayerParameter

Arrays = dict[str, np.ndarray]


def named_arrays(model: UnmaskedModel) -> Arrays:
    """All arrays by name, in the definition's order. Raises CaffeError when a name comes twice."""
    named: Arrays = {}
    for layer, arrays in zip(model.definition.param.layer, model.blobs, strict=True):
        if not arrays:
            continue
        rename = _NAMES.get(layer.type, _numbered)
        for name, array in rename(layer, arrays).items():
            if f"{layer.name}.{name}" in named:
                raise CaffeError("is the name of two layers with weights", layer=layer.name)
            named[f"{layer.name}.{name}"] = np.asarray(array, order="C")
    return named


def _weight_and_bias(layer: LayerParameter, arrays: list[np.ndarray]) -> Arrays:
    return dict(zip(("weight", "bias"), arrays, strict=False))


def _inner_product(layer: LayerParameter, arrays: list[np.ndarray]) -> Arrays:
    named = _weight_and_bias(layer, arrays)
    if layer.inner_product_param.transpose:
        named["weight"] = named["weight"].T
    return named


def _scale(layer: LayerParameter, arrays: list[np.ndarray]) -> Arrays:
    """With two bottoms, the only blob is the bias."""
    names = ("weight", "bias") if len(layer.bottom) == 1 else ("bias",)
    return dict(zip(names, arrays, strict=False))


def _bias(layer: LayerParameter, arrays: list[np.ndarray]) -> Arrays:
    return {"bias": arrays[0]}


def _prelu(layer: LayerParameter, arrays: list[np.ndarray]) -> Arrays:
    return {"weight": arrays[0].reshape(-1)}


def batch_statistics(arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each channel from BatchNorm's sums (`batch_norm_layer.cpp`)."""
    mean_sum, variance_sum, batches = arrays[:3]
    scale = np.float32(0 if batches[0] == 0 else 1 / batches[0])
    return mean_sum * scale, variance_sum * scale


def _batch_norm(layer: LayerParameter, arrays: list[np.ndarray]) -> Arrays:
    mean, variance = batch_statistics(arrays)
    # PyTorch counts batches only to average over all of them, which Caffe's decayed sums do not.
    own = dict(zip(("weight", "bias"), arrays[3:], strict=False))
    return {
        **own,
        "running_mean": mean,
        "running_var": variance,
        "num_batches_tracked": np.zeros((), np.int64),
    }


def _numbered(layer: LayerParameter, arrays: list[np.ndarray]) -> Arrays:
    return {f"blob{index}": array for index, array in enumerate(arrays)}


_NAMES: dict[str, Callable[[LayerParameter, list[np.ndarray]], Arrays]] = {
    "Convolution": _weight_and_bias,
    "Deconvolution": _weight_and_bias,
    "InnerProduct": _inner_product,
    "Embed": _weight_and_bias,
    "Scale": _scale,
    "Bias": _bias,
    "PReLU": _prelu,
    "BatchNorm": _batch_norm,
}
