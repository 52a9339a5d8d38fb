"""Fits the arrays that a model file has for a layer to the layer's blobs.

Models of plain Caffe and of both surgery forks fit nets with and without masks. Files are not read
here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Layer, Shape, shape_text
from caffe_dns.layers.masked import MagnitudeMasks, WeightedLayer

#: A stored array; None if the file omits it, or if the layer keeps its own value.
Stored = np.ndarray | None


@dataclass(frozen=True)
class StoredLayer:
    """What a model file has for one layer. `read` gives arrays by the index of the blob."""

    name: str
    read: Callable[[], Mapping[int, np.ndarray]]
    #: Whether the file omits blobs that another layer owns, as HDF5 does.
    leaves_out_shared: bool = False
    #: Whether blobs may have extra leading axes, as in files of old Caffe and C3D.
    legacy: bool = False

    def slots(self, layer: Layer) -> list[Stored]:
        """The arrays in the file's order, None for those omitted.

        Raises CaffeError when the file has more than the layer.
        """
        arrays = self.read()
        if not self.leaves_out_shared:
            return [arrays[index] for index in range(len(arrays))]
        count = len(layer.blobs)
        if isinstance(layer, WeightedLayer):
            # How many blobs the stored layer had; masks come after weight and bias.
            count = max([2 if layer.bias_term else 1, *(index + 1 for index in arrays)])
        if any(index >= count for index in arrays):
            raise layer.error(
                f"Incompatible number of blobs: the model has {max(arrays) + 1}, the layer {count}"
            )
        return [arrays.get(index) for index in range(count)]


@dataclass
class WeightedBlobs:
    """A weighted layer's arrays by meaning.

    Plain Caffe stores [W, b], HolmesShuan's fork [W, b, M], yiwenguo's [W, b, Mw, Mb]; without
    bias [W] and [W, M].
    """

    weight: Stored
    bias: Stored
    weight_mask: Stored = None
    bias_mask: Stored = None

    @classmethod
    def from_list(cls, arrays: Sequence[Stored], bias_term: bool) -> WeightedBlobs | None:
        """Sort stored arrays by meaning; None if they are not those of such a layer."""
        biases = 1 if bias_term else 0
        masks = len(arrays) - 1 - biases
        if masks not in (0, 1, 1 + biases):
            return None
        blobs = cls(
            arrays[0],
            arrays[1] if bias_term else None,
            arrays[1 + biases] if masks else None,
            arrays[3] if masks == 2 else None,
        )
        pairs = ((blobs.weight, blobs.weight_mask), (blobs.bias, blobs.bias_mask))
        fits = all(_alike(values, mask) for values, mask in pairs)
        return blobs if fits else None

    def for_layer(self, layer: WeightedLayer) -> list[Stored]:
        """The arrays in the order of the layer's blobs.

        Masks that the layer has no blob for are applied to the values.
        """
        weight, bias = self.weight, self.bias
        masks: list[Stored] = []
        if layer.mask_indices:
            masks.append(self.weight_mask)
        elif weight is not None and self.weight_mask is not None:
            log.info(f"Applying the stored mask to the weights of layer {layer.name}")
            weight = weight * self.weight_mask
        if isinstance(layer, MagnitudeMasks) and layer.bias_term:
            masks.append(self.bias_mask)
        elif bias is not None and self.bias_mask is not None:
            bias = bias * self.bias_mask
        return [weight, *([bias] if layer.bias_term else []), *masks]


def _alike(values: Stored, mask: Stored) -> bool:
    return values is None or mask is None or values.shape == mask.shape


def copy_layer(layer: Layer, stored: StoredLayer, owned: Collection[int]) -> None:
    """Copy what a file has for a layer into its blobs, of which it owns those of index `owned`.

    Raises CaffeError, with the layer, for blobs that do not fit and for blobs of its own that the
    file lacks.
    """
    try:
        arrays = _fit(layer, stored.slots(layer))
        for index, array in enumerate(arrays):
            # Blobs that the file omits are shared with another layer, which loads them.
            if array is None and index in owned and index not in layer.mask_indices:
                raise layer.error(f"Incompatible number of blobs: the model has no blob {index}")
        _assign(layer, arrays, legacy=stored.legacy)
    except CaffeError as error:
        raise error.locate(layer=layer.name) from None


def _fit(layer: Layer, arrays: Sequence[Stored]) -> list[Stored]:
    """The stored arrays in the order of the layer's blobs. Raises CaffeError on a wrong count."""
    if isinstance(layer, WeightedLayer):
        blobs = WeightedBlobs.from_list(arrays, layer.bias_term)
        if blobs is not None:
            return blobs.for_layer(layer)
        if len(arrays) == len(layer.blobs):
            shapes = ", ".join(shape_text(each.shape) for each in arrays if each is not None)
            raise layer.error(
                f"the model's blobs are no weights with masks of their shape: {shapes}"
            )
    elif len(arrays) == len(layer.blobs):
        return list(arrays)
    masks = len(layer.mask_indices)
    raise layer.error(
        f"Incompatible number of blobs: the model has {len(arrays)}, the layer "
        f"{len(layer.blobs) - masks}" + (f" and {masks} of masks" if masks else "")
    )


def _assign(layer: Layer, arrays: Sequence[Stored], *, legacy: bool = False) -> None:
    """Copy fitted arrays into the layer's blobs. Raises CaffeError for a shape that differs.

    `legacy` arrays come from files that give every blob as many axes, the missing ones in front.
    """
    for index, (target, array) in enumerate(zip(layer.blobs, arrays, strict=True)):
        if array is None:
            continue
        shape = tuple(target.shape)
        padded = (1,) * (array.ndim - len(shape)) + shape
        if array.shape != shape and not (legacy and array.shape == padded):
            raise layer.error(mismatch(index, array.shape, shape))
        with torch.no_grad():
            target.copy_(torch.from_numpy(array.reshape(shape)))


def mismatch(index: int, source: Shape, target: Shape) -> str:
    """The error about a blob of shape `source` that does not fit one of shape `target`."""
    return (
        f"Cannot copy param {index} weights; shape mismatch. Source param shape is "
        f"{shape_text(source)}; target param shape is {shape_text(target)}. To learn this layer's "
        "parameters from scratch rather than copying from a saved net, rename the layer"
    )
