"""Where the fields of a message stand in the text that it was read from.

The parser records; whoever finds something wrong with a value asks for its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from caffe_dns.proto.tokens import Lines

_STEP = re.compile(r"(\w+)(?:\[(\d+)\])?")


@dataclass
class Node:
    """One occurrence of a field: its offset in the text, and, in a message, the fields inside."""

    offset: int
    fields: dict[str, list[Node]] = field(default_factory=dict)

    def add(self, name: str, offset: int) -> Node:
        node = Node(offset)
        self.fields.setdefault(name, []).append(node)
        return node


class Positions:
    """Lines, counted from 1, of everything in one text. Unknown places answer None."""

    def __init__(self, root: Node, lines: Lines) -> None:
        self._root = root
        self._lines = lines
        self._layers: list[Node | None] = []
        self._layers += root.fields.get("layer") or root.fields.get("layers") or []

    def line(self, path: str) -> int | None:
        """The line of a field by its path: `layer[2].param[1].lr_mult`; [0] may be left out."""
        return self._line(self._find(self._root, path))

    def layer_line(self, index: int) -> int | None:
        """The line on which the entry `index` of a net's `layer` (or `layers`) begins."""
        return self._line(self._layer(index))

    def field_line(self, index: int, path: str) -> int | None:
        """The line of a field of layer `index`, such as `convolution_param.kernel_size`."""
        return self._line(self._find(self._layer(index), path))

    def field_column(self, index: int, path: str) -> int | None:
        """The column in which that field begins."""
        node = self._find(self._layer(index), path)
        return None if node is None else self._lines.column(node.offset)

    def insert_layer(self) -> None:
        """Count a layer more in front, one that does not stand in the text."""
        self._layers.insert(0, None)

    def remove_layers(self, indices: set[int]) -> None:
        """Leave these layers out of the count, because the message has lost them."""
        self._layers = [node for at, node in enumerate(self._layers) if at not in indices]

    def _layer(self, index: int) -> Node | None:
        return self._layers[index] if 0 <= index < len(self._layers) else None

    def _find(self, node: Node | None, path: str) -> Node | None:
        for name, number in _STEP.findall(path):
            found = node.fields.get(name, []) if node is not None else []
            index = int(number or 0)
            node = found[index] if index < len(found) else None
        return node

    def _line(self, node: Node | None) -> int | None:
        return None if node is None else self._lines.line(node.offset)
