"""The layers of SSD as ONNX nodes."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch

from caffe_dns.export.onnx_graph import BOOL, FLOAT, Bottoms, converts
from caffe_dns.layers.base import count
from caffe_dns.layers.detection.detection_output import ROW, DetectionOutput
from caffe_dns.layers.detection.permute import Permute
from caffe_dns.proto.caffe_pb2 import PriorBoxParameter

#: Any number that is one is higher than this, and every score that counts.
_LOWEST = -3.4e38


@converts("Permute")
def permute(at: Bottoms) -> list[str]:
    order = cast(Permute, at.layer).order
    at.graph.fixed_batch |= order[0] != 0
    return [at.add("Transpose", at.values[0], perm=order)]


@converts("Normalize")
def normalize(at: Bottoms) -> list[str]:
    settings, value = at.layer.param.norm_param, at.values[0]
    axes = tuple(range(1, at.rank)) if settings.across_spatial else (1,)
    squares = at.add("ReduceSum", at.add("Mul", value, value), at.integers("axes", axes))
    norm = at.add("Sqrt", at.affine(squares, 1.0, settings.eps))
    scale = at.layer.blobs[0]
    if scale.dim():
        scale = scale.reshape(-1, *[1] * (at.rank - 2))
    return [at.add("Mul", at.add("Div", value, norm), at.constant("scale", scale))]


@converts("PriorBox", "PriorBoxClustered")
def prior_box(at: Bottoms) -> list[str]:
    """The boxes as a constant: they depend on the bottoms' shapes alone."""
    empty = torch.zeros(())
    return [at.constant("boxes", at.layer(*(empty.expand(shape) for shape in at.shapes)))]


@converts("DetectionOutput")
def detection_output(at: Bottoms) -> list[str]:
    """The rows as NonMaxSuppression leaves them; none for images without a box.

    N images, C classes without the background, K candidates in each of these.
    """
    layer = cast(DetectionOutput, at.layer)
    if layer.refines:
        raise at.unsupported("a RefineDet (objectness_score)")
    if layer.options.nms_param.eta < 1:
        raise at.unsupported("a threshold that adapts (nms_param.eta)")
    boxes, scores, most = _candidates(at, layer)
    stays = _suppressed(at, layer, boxes, scores, most)
    flat = len(layer.labels) * most
    boxes, scores, stays = (
        at.reshape(value, extents)
        for value, extents in ((boxes, [-1, flat, 4]), (scores, [-1, flat]), (stays, [-1, flat]))
    )
    if -1 < layer.options.keep_top_k < flat:
        stays = _best(at, scores, stays, layer.options.keep_top_k)
    return [_rows(at, layer, boxes, scores, stays, most)]


def _candidates(at: Bottoms, layer: DetectionOutput) -> tuple[str, str, int]:
    """The best boxes [N, C, K, 4] of each class, their scores [N, C, K] or -inf, and K."""
    number, labels = count(at.shapes[2][2:]) // 4, at.integers("labels", layer.labels)
    boxes = at.reshape(_decoded(at, layer, number), [-1, number, layer.box_classes, 4])
    boxes = at.add("Transpose", boxes, perm=[0, 2, 1, 3])
    if layer.box_classes > 1:
        boxes = at.add("Gather", boxes, labels, axis=1)
    scores = at.reshape(at.values[1], [-1, number, layer.classes])
    scores = at.add("Gather", at.add("Transpose", scores, perm=[0, 2, 1]), labels, axis=1)
    if layer.least_score > _LOWEST:
        counts = at.add("Greater", scores, at.number("threshold", layer.least_score))
        scores = at.add("Where", counts, scores, at.number("none", -math.inf))
    most = number if layer.top_k < 0 else min(layer.top_k, number)
    scores, order = at.add_many("TopK", 2, scores, at.integers("candidates", [most]), axis=-1)
    order = at.add("Unsqueeze", order, at.integers("last", [-1]))
    ones = at.integers("ones", [1, len(layer.labels), 1, 1])
    boxes = at.add("Expand", boxes, ones)
    places = at.add("Expand", order, at.integers("corners", [1, 1, 1, 4]))
    return at.add("GatherElements", boxes, places, axis=2), scores, most


def _decoded(at: Bottoms, layer: DetectionOutput, number: int) -> str:
    """The boxes [N, P, L, 4] that the locations stand for (`BoxCode.decode`)."""
    kind, options = layer.options.code_type, layer.options
    halves = at.reshape(at.values[2], [2, number, 1, 4])
    priors, variances = (
        at.add("Gather", halves, at.constant(name, np.array(index)), axis=0)
        for index, name in enumerate(("priors", "variances"))
    )
    codes = at.reshape(at.values[0], [-1, number, layer.box_classes, 4])
    if not options.variance_encoded_in_target:
        codes = at.add("Mul", codes, variances)
    if kind == PriorBoxParameter.CORNER:
        return at.add("Add", priors, codes)
    low, high = _halves(at, priors)
    sides = at.add("Sub", high, low)
    if kind == PriorBoxParameter.CORNER_SIZE:
        shifts = at.add("Mul", codes, at.add("Concat", sides, sides, axis=-1))
        return at.add("Add", priors, shifts)
    shift, growth = _halves(at, codes)
    centres = at.affine(at.add("Add", low, high), 0.5, 0)
    centres = at.add("Add", centres, at.add("Mul", shift, sides))
    reach = at.affine(at.add("Mul", at.add("Exp", growth), sides), 0.5, 0)
    return at.add("Concat", at.add("Sub", centres, reach), at.add("Add", centres, reach), axis=-1)


def _halves(at: Bottoms, boxes: str) -> tuple[str, str]:
    """The first two and the last two numbers of each box."""
    first, second = at.add_many("Split", 2, boxes, axis=-1)
    return first, second


def _suppressed(at: Bottoms, layer: DetectionOutput, boxes: str, scores: str, most: int) -> str:
    """Which candidates stay, [N * C, K] of 0 and 1."""
    low, high = _halves(at, at.reshape(boxes, [-1, most, 4]))
    # A box that ends before it begins covers nothing; ONNX would turn it over.
    boxes = at.add("Concat", low, at.add("Max", low, high), axis=-1)
    chosen = at.add(
        "NonMaxSuppression",
        boxes,
        at.reshape(scores, [-1, 1, most]),
        at.constant("most", np.array([most], np.int64)),
        at.number("overlap", layer.options.nms_param.nms_threshold),
        at.number("lowest", _LOWEST),
    )
    places = at.add("Gather", chosen, at.integers("columns", [0, 2]), axis=1)
    lists = at.reshape(scores, [-1, most])
    nothing = at.add("ConstantOfShape", at.add("Shape", lists))
    ones = at.add(
        "Slice", at.add("Shape", places), at.integers("first", [0]), at.integers("end", [1])
    )
    return at.add("ScatterND", nothing, places, at.add("Expand", at.number("one", 1), ones))


def _best(at: Bottoms, scores: str, stays: str, most: int) -> str:
    """What stays of each image, [N, C * K]: the best `most` of what was to stay."""
    mask = at.add("Cast", stays, to=BOOL)
    counts = at.add("Where", mask, scores, at.number("nothing", -math.inf))
    found, places = at.add_many("TopK", 2, counts, at.integers("keep", [most]), axis=-1)
    empty = at.add("Mul", stays, at.number("zero", 0))
    ones = at.add("Cast", at.add("Greater", found, at.number("least", _LOWEST)), to=FLOAT)
    return at.add("ScatterElements", empty, places, ones, axis=1)


def _rows(
    at: Bottoms, layer: DetectionOutput, boxes: str, scores: str, stays: str, most: int
) -> str:
    """Image, label, score and box of all that stays, 1 x 1 x boxes x 7."""
    places = at.add("Transpose", at.add("NonZero", stays), perm=[1, 0])
    image, place = at.add_many("Split", 2, places, axis=1)
    turn = at.add("Div", place, at.integers("of_class", [most]))
    label = at.add("Gather", at.integers("names", layer.labels), turn, axis=0)
    columns = [at.add("Cast", value, to=FLOAT) for value in (image, label)]
    last = at.integers("column", [1])
    columns.append(at.add("Unsqueeze", at.add("GatherND", scores, places), last))
    columns.append(at.add("GatherND", boxes, places))
    rows = at.reshape(at.add("Concat", *columns, axis=1), [1, 1, -1, ROW])
    at.graph.extents[rows] = [1, 1, "boxes", ROW]
    return rows
