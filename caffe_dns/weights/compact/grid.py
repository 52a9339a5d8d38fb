"""Matrices as they are coded, row by row, and what is known about them at each point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """What the columns of a layer's matrix are: channels of pictures, and perhaps biases."""

    #: The layer's number.
    layer: int
    #: Without that of biases.
    columns: int
    #: How many places a picture has.
    places: int
    #: How many entries each row of the matrix before has, if its rows are the channels.
    sources: Sequence[int] = ()

    @property
    def side(self) -> int:
        """How long the rows of a picture are, which is taken for a square."""
        return math.isqrt(self.places)

    def channel(self, column: int) -> int:
        """The channel of a column; -1 for biases."""
        return column // self.places if column < self.columns else -1


def find_grid(layer: int, columns: int, sources: Sequence[int]) -> Grid:
    """The grid of a layer whose first array has so many columns.

    `sources` says how many entries each row of the matrix before has.
    """
    if sources and columns % len(sources) == 0:
        return Grid(layer, columns, columns // len(sources), sources)
    return Grid(layer, columns, columns)


class Cells:
    """Which entries of a matrix are not zero, as far as that is known."""

    def __init__(self, columns: int, live: int) -> None:
        #: How many of a row are coded.
        self.live = live
        self.own, self.in_row = [0] * columns, 0
        #: The row before, and how many of its entries are not zero.
        self.above, self.in_row_above = self.own, 0
        self.in_column = [0] * columns
        #: How many rows came before.
        self.rows = -1

    def next_row(self) -> None:
        self.above, self.in_row_above = self.own, self.in_row
        self.own, self.in_row = [0] * len(self.own), 0
        self.rows += 1

    def put(self, column: int, bit: int) -> None:
        self.own[column] = bit
        self.in_row += bit
        self.in_column[column] += bit


class Indices:
    """Which values the entries of a matrix have, as far as that is known; -1 for none."""

    def __init__(self, columns: int) -> None:
        self._row = -1
        self._columns = columns
        #: The last one in each column.
        self.above: dict[int, int] = {}
        self._begin()

    def _begin(self) -> None:
        self.own = [-1] * self._columns
        #: The last one in the row.
        self.left = -1

    def go_to(self, row: int) -> None:
        if row != self._row:
            self._row = row
            self._begin()

    def put(self, column: int, index: int) -> None:
        self.own[column] = self.above[column] = self.left = index
