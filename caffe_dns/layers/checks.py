"""Conditions that several layer families put on their blobs, each with its error.

Checks of a single layer type stay with that type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Layer


class WrongLabel(CaffeError):
    """An invalid label. `fits` tells for every label whether it is a class or ignored."""

    def __init__(self, message: str, layer: str, fits: Callable[[int], bool]) -> None:
        super().__init__(message, layer=layer, field="bottom")
        self.fits = fits


def refuse_in_place(layer: Layer) -> None:
    """Raise CaffeError if a top has the name of a bottom, for types that cannot work in place."""
    names = set(layer.param.bottom) & set(layer.param.top)
    if names:
        raise layer.error(
            f"type {layer.type} cannot work in place, but '{min(names)}' is both bottom and top",
            "top",
        )


def check_positive(layer: Layer, field: str, names: Sequence[str]) -> None:
    """Raise CaffeError for the first of these settings in the layer's `field` that is not."""
    settings = getattr(layer.param, field)
    for name in names:
        if getattr(settings, name) <= 0:
            raise layer.error("must be positive", f"{field}.{name}")


def check_sides(layer: Layer, field: str, name: str) -> None:
    """Raise CaffeError where the layer's `field` has one of `name`_height and `name`_width only."""
    settings = getattr(layer.param, field)
    height, width = f"{name}_height", f"{name}_width"
    if bool(getattr(settings, height)) != bool(getattr(settings, width)):
        raise layer.error(f"{height} and {width} must be given together", field)


def check_indices(layer: Layer, indices: Tensor, limit: int, what: str) -> None:
    """Raise CaffeError when an entry of `indices` lies outside [0, limit).

    Checks only blobs in host memory: on a GPU the host would have to wait for the values, and the
    kernels that use the indices check them.
    """
    wrong = _first_outside(indices, limit, None)
    if wrong is not None:
        raise layer.error(_out_of_range(what, wrong, limit), "bottom")


def check_labels(layer: Layer, labels: Tensor, classes: int, ignored: int | None = None) -> None:
    """Raise WrongLabel for an entry of `labels` that is neither a class nor `ignored`.

    Like `check_indices`, only in host memory.
    """
    wrong = _first_outside(labels, classes, ignored)
    if wrong is not None:
        raise WrongLabel(
            _out_of_range("label", wrong, classes),
            layer.name,
            lambda label: 0 <= label < classes or label == ignored,
        )


def _first_outside(indices: Tensor, limit: int, ignored: int | None) -> int | None:
    """The smallest entry of `indices` if negative, or the largest if it is too large.

    Entries that are `ignored` do not count.
    """
    if indices.device.type != "cpu" or indices.numel() == 0:
        return None
    if ignored is not None:
        indices = indices.masked_fill(indices == ignored, 0)
    least, most = int(indices.min()), int(indices.max())
    if least < 0:
        return least
    return most if most >= limit else None


def _out_of_range(what: str, wrong: int, limit: int) -> str:
    return f"{what} {wrong} is out of range; 0 to {limit - 1} would be right"
