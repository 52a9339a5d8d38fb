"""A net without masks: the basis of all export formats.

Its layers are of the standard types. Its weights are those that a forward pass uses, with 0 where
they are pruned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.export.deploy import Deployment
from caffe_dns.layers.base import Context, Layer
from caffe_dns.net import Net
from caffe_dns.net.definition import with_state, without_layers
from caffe_dns.proto.caffe_pb2 import TEST, NetParameter
from caffe_dns.proto.wire import Piece
from caffe_dns.proto.wire_text import serialize
from caffe_dns.weights import copy_from_net, layer_pieces, load_weights

BYTES_PER_VALUE = 4


@dataclass
class UnmaskedModel:
    """A definition, and for each of its layers the arrays (float32) in Caffe's order."""

    definition: Deployment
    blobs: list[list[np.ndarray]]
    #: Whether its net may run code that the definition names.
    allow_python_layers: bool = False

    @classmethod
    def load(
        cls, definition: Deployment, weights: str, context: Context | None = None
    ) -> UnmaskedModel:
        """The model with the weights of a .caffemodel, .caffemodel.h5 or .dnsz, masks applied.

        `weights` may name several files, separated by commas. Raises CaffeError for weights that do
        not fit, and for a layer that has none.
        """
        return cls._fill(definition, lambda net: load_weights(net, weights), weights, context)

    @classmethod
    def of_net(cls, definition: Deployment, net: Net) -> UnmaskedModel:
        """The model with the weights of a net that has the definition's layers, masks applied."""
        return cls._fill(
            definition,
            lambda plain: copy_from_net(plain, net),
            "the net",
            Context(allow_python_layers=net.context.allow_python_layers),
        )

    @classmethod
    def _fill(
        cls,
        definition: Deployment,
        fill: Callable[[Net], None],
        source: str,
        context: Context | None,
    ) -> UnmaskedModel:
        with log.hushed:
            net = _build(definition.param, context)
            _set_all(net, float("nan"))
            fill(net)
        layers = _layers_of(net, definition.param)
        blobs = [[_to_array(blob) for blob in layer.blobs] for layer in layers]
        for layer, arrays in zip(layers, blobs, strict=True):
            if any(array.size and np.isnan(array).all() for array in arrays):
                raise layer.error(f"{source} has no weights for this layer")
        return cls(definition, blobs, net.context.allow_python_layers)

    def to_net(self, context: Context | None = None) -> Net:
        """The model as a Net, in the TEST phase."""
        with log.hushed:
            context = context or Context(allow_python_layers=self.allow_python_layers)
            net = _build(self.definition.param, context)
        with torch.no_grad():
            layers = _layers_of(net, self.definition.param)
            for layer, arrays in zip(layers, self.blobs, strict=True):
                for blob, array in zip(layer.blobs, arrays, strict=True):
                    blob.copy_(torch.from_numpy(array))
        return net

    def to_pieces(self) -> list[Piece]:
        """The message of a .caffemodel, in the wire format."""
        param = self.definition.param
        pieces: list[Piece] = [serialize(without_layers(param))]
        for layer, arrays in zip(param.layer, self.blobs, strict=True):
            pieces += layer_pieces(layer, ((array, None) for array in arrays))
        return pieces

    @property
    def total(self) -> int:
        """The number of values in all arrays."""
        return sum(array.size for arrays in self.blobs for array in arrays)

    @property
    def kept(self) -> int:
        """How many of the values are not zero."""
        return sum(int(np.count_nonzero(array)) for arrays in self.blobs for array in arrays)


def _build(param: NetParameter, context: Context | None) -> Net:
    context = context or Context()
    context.surgery = False
    return Net(with_state(param, TEST), context)


def _set_all(net: Net, value: float) -> None:
    with torch.no_grad():
        for step in net.steps:
            for blob in step.layer.blobs:
                blob.fill_(value)


def _layers_of(net: Net, param: NetParameter) -> list[Layer]:
    """The net's layers that are in the definition: all but the inserted Splits."""
    layers = []
    steps = iter(net.steps)
    for wanted in param.layer:
        layers.append(next(s.layer for s in steps if s.layer.name == wanted.name))
    return layers


def _to_array(blob: Tensor) -> np.ndarray:
    # A masked negative weight is -0; adding 0 makes it an ordinary zero.
    return (blob.detach() + 0.0).contiguous().cpu().numpy()
