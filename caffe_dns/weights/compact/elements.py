"""Codes numbers, texts and matrices as bits under contexts, in both directions.

Every method takes the value to write, or nothing to read one, and returns the value.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from pathlib import Path

import numpy as np

from caffe_dns.weights.compact.grid import Cells, Grid, Indices
from caffe_dns.weights.compact.mixing import Coder, Given, Mixer
from caffe_dns.weights.compact.model import Model
from caffe_dns.weights.compact.text import Text

#: A text as definitions are, which both ends have learned from before they begin.
PRIMER = (Path(__file__).parent / "primer.txt").read_bytes()
#: The most bits that a file may have when unpacked: reading one takes seconds, whatever it claims.
MOST_BITS = 2**19
_END = 0
_LONGEST_NUMBER = 32


class Elements:
    """What a layout is made of, coded through `coder`."""

    def __init__(self, coder: Coder, model: Model) -> None:
        self._model = model
        self._mixer = Mixer(coder, model.rules)
        self._most = MOST_BITS
        #: How many bits more there may be.
        self.left = self._most

    def _spend(self, bits: int) -> None:
        """Count bits before they are coded. Raises ValueError when there are too many."""
        self.left -= bits
        if self.left < 0:
            raise ValueError(f"it has more than {self._most} bits")

    def integer(self, kind: str, value: int = 0, place: int = 0) -> int:
        """A number from 0 on: how many bits one more than it has, then these bits but the first.

        `place` is which of several numbers of a kind it is.
        """
        value += 1
        length = 1
        place = self._model.place(place)
        while self._bit(f"{kind} length", (place, length), value.bit_length() > length):
            length += 1
            if length > _LONGEST_NUMBER:
                raise ValueError("a number is too large")
        result = 1
        for shift in range(length - 2, -1, -1):
            context = place, length, result
            result = 2 * result + self._bit(f"{kind} bits", context, value >> shift & 1)
        return result - 1

    def word(self, kind: str, bits: int, value: int = 0) -> int:
        """A number of so many bits, the first of them first; the last byte of them by itself."""
        result = 1
        for shift in range(bits - 1, -1, -1):
            context = shift, result if bits - shift <= 8 else 0
            result = 2 * result + self._bit(kind, context, value >> shift & 1)
        return result - (1 << bits)

    def text(self, raw: bytes = b"") -> bytes:
        """Bytes that are not 0, as definitions have them; before all else."""
        mixer, primed = _primed(self._model)
        self._mixer.learn_from(mixer)
        text = primed.begin()
        given = iter(raw)
        while _byte(self._model, self._mixer, text, next(given, _END)) != _END:
            self._spend(8)
        return bytes(text.known[len(primed.known) : -1])

    def mask(self, grid: Grid, mask: np.ndarray) -> np.ndarray:
        """Which entries of a matrix are not zero: rows x columns, bool, in both directions."""
        rows, columns = mask.shape
        self._spend(rows + columns)
        live_rows = self._live(grid.layer, 0, np.logical_or.reduce(mask, 1))
        live_columns = self._live(grid.layer, 1, np.logical_or.reduce(mask, 0))
        self._spend(len(live_rows) * len(live_columns))
        result = np.zeros(mask.shape, bool)
        cells = Cells(columns, len(live_columns))
        for row in live_rows:
            cells.next_row()
            for order, column in enumerate(live_columns):
                contexts = self._model.cell(grid, cells, row, column, order)
                cells.put(column, self._mixer.code("mask", contexts, int(mask[row, column])))
            result[row] = cells.own
        return result

    def symbols(self, grid: Grid, mask: np.ndarray, count: int, symbols: np.ndarray) -> np.ndarray:
        """For each entry of a mask, one of `count` numbers: int64, in the mask's order."""
        bits = (count - 1).bit_length()
        self._spend(len(symbols) * bits)
        result = np.zeros(len(symbols), np.int64)
        indices = Indices(mask.shape[1])
        for place, (row, column) in enumerate(np.argwhere(mask).tolist()):
            indices.go_to(row)
            past = self._model.index(grid, indices, row, column, count)
            symbol, value = 1, int(symbols[place])
            for shift in range(bits - 1, -1, -1):
                contexts = tuple((symbol, context) for context in past)
                symbol = 2 * symbol + self._mixer.code("symbol", contexts, value >> shift & 1)
            result[place] = symbol - (1 << bits)
            indices.put(column, symbol - (1 << bits))
        return result

    def _live(self, layer: int, axis: int, any_there: np.ndarray) -> list[int]:
        """The rows or columns that are not zero throughout."""
        live = []
        before = 0
        for index, bit in enumerate(any_there.tolist()):
            contexts = (axis, layer), (axis, layer, before)
            before = self._mixer.code("live", contexts, int(bit))
            if before:
                live.append(index)
        return live

    def _bit(self, kind: str, context: Hashable, bit: int) -> int:
        """A bit that depends on one context only."""
        self._spend(1)
        return self._mixer.code(kind, (context,), int(bit))


@cache
def _primed(model: Model) -> tuple[Mixer, Text]:
    """A mixer that has learned from the primer, and a text that begins with it."""
    mixer, text = Mixer(Given(), model.rules), Text()
    for byte in PRIMER + model.end_of_primer:
        _byte(model, mixer, text, byte)
    return mixer, text


def _byte(model: Model, mixer: Mixer, text: Text, byte: int) -> int:
    """A byte behind those that are known; adds it to them."""
    past = text.past()
    partial = 1
    for shift in range(7, -1, -1):
        contexts = model.letter(text, past, partial, shift)
        partial = 2 * partial + mixer.code("text", contexts, byte >> shift & 1)
    text.add(partial - 256)
    return partial - 256
