"""The contexts under which each bit is coded, in the newest version."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable

from caffe_dns.weights.compact.grid import Cells, Grid, Indices
from caffe_dns.weights.compact.mixing import RULES
from caffe_dns.weights.compact.text import Text

Contexts = tuple[Hashable, ...]

_BOUNDS = (1, 2, 3, 4, 6, 9, 14, 24)
_SCARCEST = 7


class Model:
    """The contexts of each kind of bit; an older version has other ones."""

    rules = RULES
    #: What a text is learned from has this at its end.
    end_of_primer = b"\0"

    def place(self, place: int) -> int:
        """Of a number that is one of several."""
        return place

    def letter(self, text: Text, past: list[Hashable], partial: int, shift: int) -> Contexts:
        """Of a bit of a text's next byte: `partial` has those before it, `shift` come after it."""
        return (*((partial, context) for context in past), text.expected(partial, shift))

    def cell(self, grid: Grid, cells: Cells, row: int, column: int, order: int) -> Contexts:
        """Of whether an entry is not zero; `order` counts those that are coded of its row."""
        layer, own, in_column = grid.layer, cells.own, cells.in_column[column]
        channel = grid.channel(column)
        near = before = filled = -1
        if channel >= 0:
            side = grid.side
            y, x = divmod(column % grid.places, side)
            near = (own[column - 1] if x else 0) + (own[column - side] if y else 0)
            before = own[column - grid.places] if column >= grid.places else 0
            filled = level(grid.sources[channel]) if grid.sources else -1
        scarce = min(((10 * cells.rows + 4) // (10 * in_column + 2)).bit_length(), _SCARCEST)
        left = own[column - 1] if column else 0
        return (
            (layer, near, before, scarce),
            (layer, filled, level(cells.in_row)),
            (layer, filled, level(in_column)),
            (layer, channel),
            (cells.above[column], left, min(in_column, 3), min(cells.in_row, 3)),
        )

    def index(self, grid: Grid, indices: Indices, row: int, column: int, count: int) -> Contexts:
        """Of the bits of an index below `count`: what each depends on beside those before it."""
        channel = grid.channel(column)
        left = indices.own[column - 1] if column else -1
        above = indices.own[column - grid.side] if grid.side <= column < grid.columns else -1
        signs = _half(left, count), _half(above, count)
        return (
            (grid.layer, *signs),
            signs,
            (grid.layer, channel),
            (grid.layer, indices.left),
            (grid.layer, row, channel),
        )


def level(count: int) -> int:
    """A number of entries, the more roughly the larger it is: 0 to 8."""
    return bisect_right(_BOUNDS, count)


def _half(index: int, count: int) -> int:
    """Which half of the values has an index: 0 or 1; -1 for none."""
    return index if index < 0 else int(2 * index >= count)
