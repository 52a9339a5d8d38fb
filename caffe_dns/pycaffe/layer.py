"""The layers of a net as programs see them (`Layer` of pycaffe)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from caffe_dns.blob import Blob, BlobVec, ParamBlob
from caffe_dns.layers.base import Layer
from caffe_dns.layers.python import Python, UserLayer
from caffe_dns.net import Net as CoreNet
from caffe_dns.net.wiring import Step


class NetLayer:
    """A layer that is not the user's own: its type, and the blobs that are its weights."""

    def __init__(self, core: CoreNet, layer: Layer) -> None:
        self._layer = layer
        self.blobs = BlobVec(
            ParamBlob(partial(_blob, layer, index), partial(_owner, core, layer, index))
            for index in range(len(layer.blobs))
        )

    @property
    def type(self) -> str:
        return self._layer.type

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """The same as `reshape`: the layer keeps the blobs that it got when the net was built."""
        self.reshape(bottom, top)

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Give `top` the shapes that follow from those of `bottom`.

        Raises CaffeError for bottoms that the layer does not take.
        """
        shapes = self._layer.top_shapes([blob.shape for blob in bottom])
        if len(shapes) != len(top):
            raise self._layer.error(f"has {len(shapes)} tops, but given are {len(top)}")
        for blob, shape in zip(top, shapes, strict=True):
            blob.reshape(*shape)


def layer_of(core: CoreNet, step: Step) -> NetLayer | UserLayer:
    """What programs see of a step's layer; for a Python layer it is the user's object."""
    layer = step.layer
    return layer.user if isinstance(layer, Python) else NetLayer(core, layer)


def _blob(layer: Layer, index: int) -> Tensor:
    return layer.blobs[index]


def _owner(core: CoreNet, layer: Layer, index: int) -> Tensor:
    return core.table.owner(layer, index).tensor
