"""Replaces data layers, and Input layers without shapes, by Input layers.

This is for showing or exporting a net without its data. The shapes come from the data layers
themselves, or from the user where the data are not available.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from caffe_dns.errors import CaffeError
from caffe_dns.layers import layer_types
from caffe_dns.layers.base import Context, Shape
from caffe_dns.net.definition import without_layers
from caffe_dns.proto.caffe_pb2 import BlobShape, LayerParameter, NetParameter, Phase

#: The shape of an item, without the batch axis: of the first top, or of several.
ItemShape: TypeAlias = "Shape | tuple[Shape, ...]"

#: Layers without bottoms that do not read data.
_NOT_DATA = {"Input", "Parameter", "ContinuationIndicator"}


def data_layers(param: NetParameter) -> list[LayerParameter]:
    """The layers that bring in data, in the definition's order."""
    return [layer for layer in param.layer if _is_data(layer)]


def replace_data(
    param: NetParameter,
    phase: Phase,
    shapes: Sequence[ItemShape] = (),
    context: Context | None = None,
) -> NetParameter:
    """A copy with an Input layer for each top of a data layer.

    `shapes`, if any, gives the shape of an item, without the batch, for each data layer in turn,
    Input layers without shapes among them; batches then have one item, and tops without a shape one
    number for it. Raises CaffeError when their number is not that of the data layers, or when a
    data layer cannot say its shapes.
    """
    found = [layer for layer in param.layer if _takes_shape(layer)]
    if shapes and len(shapes) != len(found):
        raise CaffeError(
            f"{len(shapes)} shape(s) given for {len(found)} data layer(s); "
            "one for each, or none, would be right"
        )
    given = iter(shapes)
    result = without_layers(param)
    for layer in param.layer:
        shape = next(given, None) if _takes_shape(layer) else None
        if shape is None and not _is_data(layer):
            result.layer.add().CopyFrom(layer)
            continue
        if shape is None:
            tops = _ask(layer, phase, context or Context())
        else:
            tops = _batches_of_one(layer, shape)
        for top, extents in zip(layer.top, tops, strict=True):
            source = result.layer.add(name=top, type="Input", top=[top])
            source.input_param.shape.append(BlobShape(dim=extents))
    return result


def _batches_of_one(layer: LayerParameter, shape: ItemShape) -> list[Shape]:
    """The shapes of a layer's tops for one item of this shape. Raises CaffeError for too many."""
    given: list[Any] = list(shape) if shape and isinstance(shape[0], tuple) else [shape]
    if len(given) > len(layer.top):
        raise CaffeError(
            f"{len(given)} shapes given for {len(layer.top)} top(s)", layer=layer.name, field="top"
        )
    return [(1, *each) for each in given] + [(1,)] * (len(layer.top) - len(given))


def set_batch(param: NetParameter, batch: int) -> None:
    """Give the Input layers batches of this size, where their first axis is that of the first."""
    shapes = [
        shape
        for layer in param.layer
        if layer.type == "Input"
        for shape in layer.input_param.shape
        if shape.dim
    ]
    old = shapes[0].dim[0] if shapes else 0
    for shape in shapes:
        if shape.dim[0] == old:
            shape.dim[0] = batch


def _is_data(layer: LayerParameter) -> bool:
    return not layer.bottom and layer.type not in _NOT_DATA


def _takes_shape(layer: LayerParameter) -> bool:
    """Whether the definition leaves the layer's shapes open."""
    return _is_data(layer) or (layer.type == "Input" and not layer.input_param.shape)


def _ask(param: LayerParameter, phase: Phase, context: Context) -> list[Shape]:
    """The shapes of the tops of a data layer, which opens its data to find out."""
    described = LayerParameter()
    described.CopyFrom(param)
    described.phase = phase
    try:
        layer = layer_types[param.type](described, context)
        try:
            return [tuple(shape) for shape in layer.setup([])]
        finally:
            close = getattr(layer, "close", None)
            if close is not None:
                close()
    except CaffeError as error:
        if error.file is not None:  # the data are wrong or missing
            error.message += " (without the data, give the shape of an item: --shape 3,227,227)"
        raise error.locate(layer=param.name) from None
