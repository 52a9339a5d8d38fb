"""The channels of every blob of a model: what is known about them, and the layers in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from caffe_dns.export.model import UnmaskedModel
from caffe_dns.layers.base import Layer, Shape
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter


@dataclass(eq=False)
class Channels:
    """The channels of a blob, as one layer leaves them: an in-place layer makes new ones.

    They lie along `axis` of `shape`. A blob in which nobody knows of channels has no axis and
    counts as one channel, which stays.
    """

    name: str
    shape: Shape
    axis: int | None = None
    #: The layers that read them, one for each time; what nobody reads is an output of the net.
    readers: list[Node] = field(default_factory=list)
    #: The number that a channel holds everywhere and always, NaN where there is none; float64.
    constant: np.ndarray = field(init=False)
    #: Whether an output may depend on the channel.
    needed: np.ndarray = field(init=False)
    #: Whether the channel is to go.
    removed: np.ndarray = field(init=False)
    #: The order in which they are to stand, if not that in which they do.
    order: np.ndarray | None = None

    def put(self, axis: int | None) -> None:
        """Say which axis the channels lie along, and that nothing is known of them yet."""
        self.axis = axis
        count = 1 if axis is None else self.shape[axis]
        self.constant = np.full(count, np.nan)
        self.needed = np.zeros(count, bool)
        self.removed = np.zeros(count, bool)

    def __len__(self) -> int:
        return len(self.removed)

    @property
    def is_constant(self) -> np.ndarray:
        return np.isfinite(self.constant)

    @property
    def kept(self) -> np.ndarray:
        """The indices of the channels that stay, in the order in which they are to stand."""
        if self.order is not None:
            return self.order[~self.removed[self.order]]
        return np.flatnonzero(~self.removed)

    def keep(self, mask: np.ndarray | bool) -> int:
        """Let the channels of `mask` stay; returns how many of them were to go."""
        held = int(np.count_nonzero(self.removed & mask))
        self.removed &= ~np.asarray(mask)
        return held


@dataclass(eq=False)
class Node:
    """A layer between channels. `arrays` are its blobs in Caffe's order."""

    layer: Layer
    param: LayerParameter
    arrays: list[np.ndarray]
    bottoms: list[Channels]
    tops: list[Channels]
    #: How many channels the layer did not let go by itself.
    held: int = 0
    #: What a rule has found out about the arrays, and does not want to find out again.
    known: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def bottom(self) -> Channels:
        return self.bottoms[0]

    @property
    def top(self) -> Channels:
        return self.tops[0]

    def hold(self, channels: Channels, mask: np.ndarray | bool) -> None:
        """Let the channels of `mask` stay on behalf of this layer."""
        self.held += channels.keep(mask)

    def remember(self, what: str, find: Callable[[], np.ndarray]) -> np.ndarray:
        """What `find` gives, found once."""
        if what not in self.known:
            self.known[what] = find()
        return self.known[what]


@dataclass(eq=False)
class Graph:
    """The layers of a definition in its order; `param` has those of the nodes."""

    param: NetParameter
    nodes: list[Node]

    @property
    def channels(self) -> list[Channels]:
        """All channels, in the order in which layers make them."""
        return [top for node in self.nodes for top in node.tops]

    def part_sharers(self) -> None:
        """Let layers that share a blob do so no longer if each has another one now."""
        owners: dict[str, np.ndarray] = {}
        for node in self.nodes:
            for spec, array in zip(node.param.param, node.arrays, strict=False):
                if spec.name:
                    owner = owners.setdefault(spec.name, array)
                    if not np.array_equal(owner.ravel(), array.ravel()):
                        spec.ClearField("name")
                        spec.ClearField("share_mode")


def connect(model: UnmaskedModel) -> Graph:
    """A copy of the model's definition, with the channels between its layers."""
    net = model.to_net()
    param = NetParameter()
    param.CopyFrom(model.definition.param)
    blobs: dict[str, Channels] = {}
    nodes = []
    for layer_param, arrays in zip(param.layer, model.blobs, strict=True):
        layer = net.layer(layer_param.name)
        assert layer is not None
        bottoms = [blobs[name] for name in layer_param.bottom]
        if bottoms:
            shapes = [tuple(s) for s in layer.top_shapes([bottom.shape for bottom in bottoms])]
        else:
            shapes = [net.blob_shapes[name] for name in layer_param.top]
        # A loss may have a top that the definition does not name.
        tops = [Channels(*pair) for pair in zip(layer_param.top, shapes, strict=False)]
        blobs.update((top.name, top) for top in tops)
        nodes.append(Node(layer, layer_param, list(arrays), bottoms, tops))
        for bottom in bottoms:
            bottom.readers.append(nodes[-1])
    return Graph(param, nodes)
