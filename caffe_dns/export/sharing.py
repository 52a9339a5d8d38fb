"""Makes the weights of each layer share a few values, so that a compact file takes few bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from caffe_dns.export.model import UnmaskedModel
from caffe_dns.surgery.shared_values import find_values, nearest
from caffe_dns.surgery.stages import MOST_BITS


def share_values(model: UnmaskedModel, bits: int | Mapping[str, int]) -> UnmaskedModel:
    """The model with at most 2^bits values, and 0, in each layer that has a matrix of weights.

    Bits may be given by layer; those that are not named then have 8.

    They are float16 numbers. Layers that have so few already stay as they are, as do those without
    a matrix: BatchNorm, Scale, PReLU.
    """
    names = [layer.name for layer in model.definition.param.layer]
    given = dict.fromkeys(names, bits) if isinstance(bits, int) else bits
    blobs = [
        _share(arrays, given.get(name, MOST_BITS))
        for name, arrays in zip(names, model.blobs, strict=True)
    ]
    return replace(model, blobs=blobs)


def _share(arrays: list[np.ndarray], bits: int) -> list[np.ndarray]:
    if not any(array.ndim > 1 for array in arrays):
        return arrays
    entries = np.concatenate([array[array != 0] for array in arrays])
    if not len(entries) or not np.isfinite(entries).all():
        return arrays
    values = find_values(entries, 2**bits)
    shared = []
    for array in arrays:
        result = np.where(array == 0, 0, values[nearest(values, array)].astype(np.float32))
        # Adding 0 makes -0, which a small value is in float16, an ordinary zero.
        shared.append(result + np.float32(0))
    return shared
