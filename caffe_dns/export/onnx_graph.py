"""An ONNX graph under construction: nodes, constants, and the current value of each Caffe blob.

The nodes for each layer type are in `onnx_layers`, `onnx_neurons`, `onnx_shapes`, `onnx_forks`,
`onnx_tensors`, `onnx_recurrent` and `onnx_detection`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from caffe_dns.layers.base import Layer, Shape
from caffe_dns.registry import Registry

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

#: Element types of onnx.TensorProto.
FLOAT, INT64, BOOL = 1, 7, 9

#: Gives the values that a layer's tops are, adding nodes for them.
Converter = Callable[["Bottoms"], list[str]]
converters: Registry[Converter] = Registry("converter to ONNX")
#: Decorator: this converter is for layers of these types.
converts = converters.register


class Graph:
    """Nodes and constants under names that are taken once."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        #: Whether a node holds for batches of one size only.
        self.fixed_batch = False
        #: The extents of values that differ from those of Caffe's blob; words for what varies.
        self.extents: dict[str, list[int | str]] = {}
        self._taken: set[str] = set()

    def take_name(self, wanted: str) -> str:
        """`wanted`, with underscores behind it if that is the name of another value."""
        while wanted in self._taken:
            wanted += "_"
        self._taken.add(wanted)
        return wanted

    def add_constant(self, name: str, array: np.ndarray) -> str:
        """A constant value; returns its name."""
        from onnx.numpy_helper import from_array

        name = self.take_name(name)
        # Not ascontiguousarray, which would give a single number an axis, and so what it scales.
        self.constants.append(from_array(np.asarray(array, order="C"), name))
        return name

    def add_node(
        self, operator: str, inputs: Sequence[str], name: str, outputs: int, attributes: Any
    ) -> list[str]:
        """A node; returns the names of its values."""
        from onnx.helper import make_node

        tops = [self.take_name(name) for _ in range(outputs)]
        self.nodes.append(make_node(operator, inputs, tops, name=tops[0], **attributes))
        return tops

    def rename(self, old: str, new: str) -> None:
        """Give a value another name that is not taken yet."""
        self._taken.discard(old)
        self._taken.add(new)
        if old in self.extents:
            self.extents[new] = self.extents.pop(old)
        for node in self.nodes:
            for values in (node.input, node.output):
                for index, value in enumerate(values):
                    if value == old:
                        values[index] = new


@dataclass
class Bottoms:
    """A layer whose turn it is: its bottoms as values of the graph, and their shapes."""

    graph: Graph
    layer: Layer
    values: list[str]
    shapes: list[Shape]
    top_shapes: list[Shape]

    @property
    def rank(self) -> int:
        """How many axes the first bottom has."""
        return len(self.shapes[0])

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node with one value; returns its name."""
        return self.add_many(operator, 1, *inputs, **attributes)[0]

    def add_many(self, operator: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """A node with several values; returns their names."""
        return self.graph.add_node(operator, inputs, self.layer.name, outputs, attributes)

    def constant(self, name: str, value: Tensor | np.ndarray) -> str:
        """A constant called LAYER.NAME; returns its name."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return self.graph.add_constant(f"{self.layer.name}.{name}", array)

    def number(self, name: str, value: float) -> str:
        """A single float32 as a constant."""
        return self.constant(name, np.array(value, np.float32))

    def integers(self, name: str, values: Sequence[int]) -> str:
        """Whole numbers (a shape, axes) as a constant."""
        return self.constant(name, np.array(values, np.int64))

    def affine(self, value: str, scale: float, shift: float) -> str:
        """scale * value + shift, without a node for what changes nothing."""
        if scale != 1:
            value = self.add("Mul", value, self.number("scale", scale))
        return value if shift == 0 else self.add("Add", value, self.number("shift", shift))

    def reshape(self, value: str, extents: Sequence[int]) -> str:
        """The value in another shape; 0 copies an extent, one -1 is inferred."""
        return self.add("Reshape", value, self.integers("shape", extents))

    def unsupported(self, what: str) -> Exception:
        """The error for something that has no form in ONNX here."""
        return self.layer.error(f"{what} cannot be exported to ONNX")
