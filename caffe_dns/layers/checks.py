"""Conditions that several layer families put on their blobs, each said as one error.

Only checks live here; what belongs to a single layer type stays with that type.
"""

from __future__ import annotations

from torch import Tensor

from caffe_dns.layers.base import Layer


def refuse_in_place(layer: Layer) -> None:
    """Raise CaffeError when a top has the name of a bottom, for the types that forbid it."""
    names = set(layer.param.bottom) & set(layer.param.top)
    if names:
        raise layer.error(
            f"type {layer.type} cannot work in place, but '{min(names)}' is both bottom and top",
            "top",
        )


def check_indices(layer: Layer, indices: Tensor, limit: int, what: str) -> None:
    """Raise CaffeError when an entry of `indices` lies outside [0, limit).

    Looks at blobs in host memory only: on a GPU the host would have to wait for the values, and the
    kernels that use the indices stop by themselves.
    """
    if indices.device.type != "cpu" or indices.numel() == 0:
        return
    least, most = int(indices.min()), int(indices.max())
    if least < 0 or most >= limit:
        wrong = least if least < 0 else most
        raise layer.error(
            f"{what} {wrong} is out of range; 0 to {limit - 1} would be right", "bottom"
        )
