"""Compact files of version 2, which are read but no longer written.

The differences from `shared`, as docs/dnsz.md says: how contexts learn, what bits depend on, and
how shapes are coded.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from caffe_dns.proto.caffe_pb2 import LayerParameter
from caffe_dns.weights.compact import shared
from caffe_dns.weights.compact.contents import Contents
from caffe_dns.weights.compact.elements import Elements
from caffe_dns.weights.compact.grid import Cells, Grid, Indices
from caffe_dns.weights.compact.mixing import RULES_2
from caffe_dns.weights.compact.model import Contexts, Model, level
from caffe_dns.weights.compact.text import Text

VERSION = 2


def decode(raw: bytes) -> Contents:
    """The contents of such bytes; raises CaffeError when they are damaged."""
    return shared.decode_by(raw, lambda decoder: _Layout(Elements(decoder, _MODEL)))


@dataclass(frozen=True)
class _Steps(Grid):
    """A grid of which is known only how far apart those columns are that are alike."""

    steps: tuple[int, ...] = ()


class _Model(Model):
    rules = RULES_2
    end_of_primer = b""

    def place(self, place: int) -> int:
        return 0

    def letter(self, text: Text, past: list[Hashable], partial: int, shift: int) -> Contexts:
        return tuple((partial, context) for context in past)

    def cell(self, grid: Grid, cells: Cells, row: int, column: int, order: int) -> Contexts:
        own, in_column, in_row = cells.own, cells.in_column[column], cells.in_row
        near = 0
        for step in grid.steps if isinstance(grid, _Steps) else ():
            near = 2 * near + (own[column - step] if 0 < step <= column else 0)
        left = own[column - 1] if column else 0
        contexts = (
            0,
            (level(in_column), min(cells.rows, 20) // 2),
            (level(in_row), 8 * order // cells.live),
            near,
            (cells.above[column], left, min(in_column, 3), min(in_row, 3)),
            column,
            row,
            (level(cells.in_row_above), level(in_row)),
        )
        return tuple((grid.layer, context) for context in contexts)

    def index(self, grid: Grid, indices: Indices, row: int, column: int, count: int) -> Contexts:
        left, above = indices.left, indices.above.get(column, -1)
        contexts = 0, left, above, (left, above), column, row
        return tuple((grid.layer, context) for context in contexts)


_MODEL = _Model()


class _Layout(shared.Layout):
    def _likely(self, layer: LayerParameter) -> tuple[int, ...]:
        return ()

    def _grid(self, index: int, shapes: Sequence[shared.Shape]) -> Grid:
        first = shapes[0]
        if len(first) > 2:
            steps: tuple[int, ...] = (1, first[-1], first[-1] * first[-2])
        else:
            steps = 1, self._elements.integer("step")
        return _Steps(index, 0, 1, steps=steps)
