"""Layers that move, join, cut or pick entries, as ONNX nodes.

What computes is in `onnx_layers`.
"""

from __future__ import annotations

from typing import cast

from caffe_dns.export.onnx_graph import FLOAT, INT64, Bottoms, converts
from caffe_dns.layers.neuron import Dropout
from caffe_dns.layers.score import ArgMax
from caffe_dns.layers.shape import Concat, Slice


@converts("Dropout")
def dropout(at: Bottoms) -> list[str]:
    return [at.affine(at.values[0], cast(Dropout, at.layer).test_scale, 0.0)]


@converts("Split")
def split(at: Bottoms) -> list[str]:
    return at.values * at.layer.num_tops


@converts("Silence")
def silence(at: Bottoms) -> list[str]:
    return []


@converts("Parameter")
def parameter(at: Bottoms) -> list[str]:
    return [at.constant("weight", at.layer.blobs[0])]


@converts("Concat")
def concat(at: Bottoms) -> list[str]:
    axis = cast(Concat, at.layer).own_axis(len(at.top_shapes[0]))
    at.graph.fixed_batch |= axis == 0 and len(at.shapes) > 1
    return [at.add("Concat", *at.values, axis=axis)]


@converts("Slice")
def slice_(at: Bottoms) -> list[str]:
    axis = cast(Slice, at.layer).own_axis(at.rank)
    at.graph.fixed_batch |= axis == 0
    parts = at.integers("parts", [shape[axis] for shape in at.top_shapes])
    return at.add_many("Split", len(at.top_shapes), at.values[0], parts, axis=axis)


@converts("Flatten")
def flatten(at: Bottoms) -> list[str]:
    settings, shape = at.layer.param.flatten_param, at.shapes[0]
    start = at.layer.axis(settings.axis, at.rank)
    end = at.layer.axis(settings.end_axis, at.rank) + 1
    return [at.reshape(at.values[0], [*[0] * start, -1, *shape[end:]])]


@converts("Reshape")
def reshape(at: Bottoms) -> list[str]:
    settings, shape = at.layer.param.reshape_param, at.shapes[0]
    # An axis may also be the place behind the last one, which is -1.
    start = at.layer.axis(settings.axis, at.rank + 1)
    end = at.rank if settings.num_axes == -1 else start + settings.num_axes
    extents = [*[0] * start, *settings.shape.dim, *shape[end:]]
    at.graph.fixed_batch |= not extents or extents[0] > 0
    return [at.reshape(at.values[0], extents)]


@converts("Crop")
def crop(at: Bottoms) -> list[str]:
    settings, top = at.layer.param.crop_param, at.top_shapes[0]
    first = at.layer.axis(settings.axis, at.rank)
    axes = range(first, at.rank)
    offsets = list(settings.offset) or [0]
    if len(offsets) == 1:
        offsets *= len(axes)
    at.graph.fixed_batch |= first == 0
    ends = [offset + top[axis] for offset, axis in zip(offsets, axes, strict=True)]
    places = [at.integers(*part) for part in (("starts", offsets), ("ends", ends), ("axes", axes))]
    return [at.add("Slice", at.values[0], *places)]


@converts("Tile")
def tile(at: Bottoms) -> list[str]:
    settings = at.layer.param.tile_param
    repeats = [1] * at.rank
    repeats[at.layer.axis(settings.axis, at.rank)] = settings.tiles
    return [at.add("Tile", at.values[0], at.integers("repeats", repeats))]


@converts("BatchReindex")
def batch_reindex(at: Bottoms) -> list[str]:
    return [at.add("Gather", at.values[0], at.add("Cast", at.values[1], to=INT64))]


@converts("ArgMax")
def argmax(at: Bottoms) -> list[str]:
    layer, value = cast(ArgMax, at.layer), at.values[0]
    if layer.top_k != 1 or (layer.whole_items and layer.values):
        raise at.unsupported("an ArgMax with top_k above 1, or with out_max_val for whole items,")
    axis = 1
    if layer.whole_items:
        value = at.reshape(value, [0, -1])
    else:
        axis = layer.axis(layer.param.argmax_param.axis, at.rank)
    if layer.values:
        return [at.add("ReduceMax", value, axes=[axis])]
    places = at.add("ArgMax", value, axis=axis, select_last_index=1)
    value = at.add("Cast", places, to=FLOAT)
    if layer.whole_items:
        value = at.reshape(value, [0, *at.top_shapes[0][1:]])
    return [value]
