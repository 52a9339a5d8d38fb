"""The layers of SSD as ONNX nodes."""

from __future__ import annotations

from typing import cast

import torch

from caffe_dns.export.onnx_graph import Bottoms, converts
from caffe_dns.layers.detection.permute import Permute


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


@converts("PriorBox")
def prior_box(at: Bottoms) -> list[str]:
    """The boxes as a constant: they depend on the bottoms' shapes alone."""
    empty = torch.zeros(())
    return [at.constant("boxes", at.layer(*(empty.expand(shape) for shape in at.shapes)))]
