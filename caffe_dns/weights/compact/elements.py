"""Numbers, texts and matrices as bits under contexts, in both directions.

Every method takes what is to be written, or nothing to read it, and returns it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from caffe_dns.weights.compact.mixing import Coder, Given, Mixer

#: A text as definitions are, which both ends have learned from before they begin.
PRIMER = (Path(__file__).parent / "primer.txt").read_bytes()
#: The most that a file may have of each, so that reading one takes a minute, whatever it claims.
LIMITS = {"bytes of text": 2**16, "lines": 2**17, "cells": 2**20, "symbols": 2**17, "words": 2**15}
_END = 0
_BOUNDS = (1, 2, 3, 4, 6, 9, 14, 24)
_ORDERS = (1, 2, 3, 4, 6, 8)
_LONGEST_ORDER = max(_ORDERS)
_LONGEST_NUMBER = 32


class Elements:
    """What a layout is made of, coded through `coder`."""

    def __init__(self, coder: Coder) -> None:
        self._mixer = Mixer(coder)
        self._left = dict(LIMITS)

    def _spend(self, kind: str, count: int) -> None:
        """Count what takes time. Raises ValueError when it is too much."""
        self._left[kind] -= count
        if self._left[kind] < 0:
            raise ValueError(f"it has more than {LIMITS[kind]} {kind}")

    def integer(self, kind: str, value: int = 0) -> int:
        """A number from 0 on: how many bits one more than it has, then these bits but the first."""
        value += 1
        length = 1
        while self._bit(f"{kind} length", length, value.bit_length() > length):
            length += 1
            if length > _LONGEST_NUMBER:
                raise ValueError("a number is too large")
        result = 1
        for shift in range(length - 2, -1, -1):
            result = 2 * result + self._bit(f"{kind} bits", (length, result), value >> shift & 1)
        return result - 1

    def word(self, kind: str, bits: int, value: int = 0) -> int:
        """A number of so many bits, the first of them first; the last byte of them by itself."""
        self._spend("words", 1)
        result = 1
        for shift in range(bits - 1, -1, -1):
            context = (shift, result if bits - shift <= 8 else 0)
            result = 2 * result + self._bit(kind, context, value >> shift & 1)
        return result - (1 << bits)

    def text(self, raw: bytes = b"") -> bytes:
        """Bytes that are not 0, as definitions have them; before all else."""
        self._mixer.learn_from(_primed())
        known = bytearray(_LONGEST_ORDER) + PRIMER
        start = len(known)
        given = iter(raw)
        while _byte(self._mixer, known, next(given, _END)):
            self._spend("bytes of text", 1)
        return bytes(known[start:-1])

    def mask(self, layer: int, mask: np.ndarray, steps: Sequence[int]) -> np.ndarray:
        """Which entries of a matrix are not zero: rows x columns, bool, in both directions.

        `steps` are the distances, to the left, of the entries that those of one row resemble.
        """
        rows, columns = mask.shape
        self._spend("lines", rows + columns)
        live_rows = self._live(layer, 0, np.logical_or.reduce(mask, 1))
        live_columns = self._live(layer, 1, np.logical_or.reduce(mask, 0))
        self._spend("cells", len(live_rows) * len(live_columns))
        result = np.zeros(mask.shape, bool)
        width = max(len(live_columns), 1)
        in_column = [0] * columns
        above, in_row_above = [0] * columns, 0
        for number, row in enumerate(live_rows):
            own, in_row = [0] * columns, 0
            for place, column in enumerate(live_columns):
                near = 0
                for step in steps:
                    near = 2 * near + (own[column - step] if 0 < step <= column else 0)
                left = own[column - 1] if column else 0
                contexts = (
                    0,
                    (_level(in_column[column]), min(number, 20) // 2),
                    (_level(in_row), 8 * place // width),
                    near,
                    (above[column], left, min(in_column[column], 3), min(in_row, 3)),
                    column,
                    row,
                    (_level(in_row_above), _level(in_row)),
                )
                bit = self._mixer.code("mask", layer, contexts, int(mask[row, column]))
                own[column] = bit
                in_row += bit
                in_column[column] += bit
            result[row] = own
            above, in_row_above = own, in_row
        return result

    def symbols(self, layer: int, mask: np.ndarray, count: int, symbols: np.ndarray) -> np.ndarray:
        """For each entry of a mask, one of `count` numbers: int64, in the mask's order."""
        self._spend("symbols", len(symbols))
        result = np.zeros(len(symbols), np.int64)
        in_column: dict[int, int] = {}
        left, last_row = -1, -1
        for index, (row, column) in enumerate(np.argwhere(mask).tolist()):
            left = left if row == last_row else -1
            above = in_column.get(column, -1)
            symbol, value = 1, int(symbols[index])
            for shift in range((count - 1).bit_length() - 1, -1, -1):
                contexts = (
                    symbol,
                    (symbol, left),
                    (symbol, above),
                    (symbol, left, above),
                    (symbol, column),
                    (symbol, row),
                )
                bit = self._mixer.code("symbol", layer, contexts, value >> shift & 1)
                symbol = 2 * symbol + bit
            symbol -= 1 << (count - 1).bit_length()
            result[index] = in_column[column] = left = symbol
            last_row = row
        return result

    def _live(self, layer: int, axis: int, any_there: np.ndarray) -> list[int]:
        """The rows or columns that are not zero throughout."""
        live = []
        before = 0
        for index, bit in enumerate(any_there.tolist()):
            before = self._mixer.code("live", axis, (layer, (layer, before)), int(bit))
            if before:
                live.append(index)
        return live

    def _bit(self, kind: str, context: Hashable, bit: int) -> int:
        """A bit that depends on one context only."""
        return self._mixer.code(kind, 0, (context,), int(bit))


@cache
def _primed() -> Mixer:
    """A mixer that has learned from the primer."""
    mixer = Mixer(Given())
    known = bytearray(_LONGEST_ORDER)
    for byte in PRIMER:
        _byte(mixer, known, byte)
    return mixer


def _byte(mixer: Mixer, known: bytearray, byte: int) -> int:
    """A byte behind those that are known; adds it to them."""
    orders = [bytes(known[-length:]) for length in _ORDERS]
    line = bytes(known[known.rfind(b"\n") + 1 :]).strip()
    partial = 1
    for shift in range(7, -1, -1):
        contexts = (partial, *((partial, past) for past in orders), (partial, line))
        partial = 2 * partial + mixer.code("text", 0, contexts, byte >> shift & 1)
    known.append(partial - 256)
    return known[-1]


def _level(count: int) -> int:
    """A number of entries, the more roughly the larger it is: 0 to 8."""
    return bisect_right(_BOUNDS, count)
