"""Gives a definition the sizes of the one in a compact file.

A compact file may hold a shrunk net: layers of the same names with fewer channels, and some layers
gone. Its definition is for deployment; the one that trains and scores has data and losses.
"""

from __future__ import annotations

from collections.abc import Iterable

from caffe_dns.net.definition import without_layers
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter
from caffe_dns.weights.compact.files import is_compact, read

#: Types that another layer's weights can stand for.
_FOLDED = ("BatchNorm", "Scale", "Bias")
#: What shrinking changes in which message.
_SIZES = {
    "convolution_param": ("num_output", "group", "bias_term"),
    "inner_product_param": ("num_output", "bias_term"),
}


def fit_definition(param: NetParameter, files: Iterable[str]) -> NetParameter:
    """The definition with the sizes of the nets in those of `files` that are compact.

    A definition that has them already stays as it is. Raises CaffeError for files that cannot be
    read.
    """
    for file in files:
        if is_compact(file):
            param = _fit(param, read(file).definition)
    return param


def _fit(param: NetParameter, small: NetParameter) -> NetParameter:
    sized = {layer.name: layer for layer in small.layer}
    known = any(layer.name in sized for layer in param.layer)
    result = without_layers(param)
    renamed: dict[str, str] = {}
    for layer in param.layer:
        if known and layer.name not in sized and layer.type in _FOLDED:
            renamed[layer.top[0]] = renamed.get(layer.bottom[0], layer.bottom[0])
            continue
        fitted = result.layer.add()
        fitted.CopyFrom(layer)
        fitted.bottom[:] = [renamed.get(blob, blob) for blob in layer.bottom]
        # What works in place goes on under the name that is left.
        fitted.top[:] = [
            renamed[top] if top in layer.bottom and top in renamed else top for top in layer.top
        ]
        if layer.name in sized:
            _size(fitted, sized[layer.name])
    return result


def _size(layer: LayerParameter, wanted: LayerParameter) -> None:
    """Give a layer what shrinking may have changed."""
    names = [spec.name for spec in wanted.param] + [""] * len(layer.param)
    for spec, name in zip(layer.param, names, strict=False):
        if spec.name != name:
            # Of what the layers shared, each has another part now.
            spec.ClearField("name")
            spec.ClearField("share_mode")
    for name, fields in _SIZES.items():
        settings, sizes = getattr(layer, name), getattr(wanted, name)
        for field in fields if wanted.HasField(name) else ():
            if getattr(settings, field) != getattr(sizes, field):
                setattr(settings, field, getattr(sizes, field))
    for name in ("slice_param", "reshape_param"):
        if wanted.HasField(name):
            getattr(layer, name).CopyFrom(getattr(wanted, name))
