"""Compact files of version 3: layers whose weights share a few values, in as few bytes as we can.

docs/dnsz.md specifies it. After the beginning come four bytes of a CRC-32, and then one stream of
bits under contexts (`elements`): the definition and, layer by layer, shapes, the values that are
shared, which entries are not zero, and which value each of them has.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter
from caffe_dns.proto.text import parse_text, to_text
from caffe_dns.weights.compact.contents import Contents
from caffe_dns.weights.compact.elements import MOST_BITS, Elements
from caffe_dns.weights.compact.grid import Grid, find_grid
from caffe_dns.weights.compact.model import Model
from caffe_dns.weights.compact.range_coder import Decoder, Encoder

VERSION = 3
_CHECKSUM_BYTES = 4
#: In all arrays together.
_MOST_ENTRIES = 2**25
_MOST_VALUES = 256
_MOST_ARRAYS = 32
_MOST_AXES = 32
#: In place of a number of axes: one, as long as the first of the array before.
_LIKE_ROWS = _MOST_AXES + 1
#: What stands between texts.
_BETWEEN = "\x01"
#: Fields that say how many rows, and how long axes, arrays have.
_SIZES = ("num_output", "kernel_size")
_DAMAGE = (ValueError, OverflowError, RecursionError)

Shape = tuple[int, ...]

_MODEL = Model()


def encode(contents: Contents) -> bytes | None:
    """What follows the first eight bytes; None for contents that are not for this version.

    These are large nets, and such as have a layer with a matrix of more than 256 values.
    """
    if not _is_suitable(contents):
        return None
    coder = Encoder()
    try:
        Layout(Elements(coder, _MODEL)).code(contents)
    except ValueError:
        return None
    stream = coder.finish()
    return zlib.crc32(stream).to_bytes(_CHECKSUM_BYTES, "little") + stream


def decode(raw: bytes) -> Contents:
    """The contents of such bytes; raises CaffeError when they are damaged."""
    return decode_by(raw, lambda decoder: Layout(Elements(decoder, _MODEL)))


def decode_by(raw: bytes, layout: Callable[[Decoder], Layout]) -> Contents:
    """The contents of bytes that are laid out so; raises CaffeError when they are damaged."""
    checksum, stream = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
    if zlib.crc32(stream).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise CaffeError("is damaged: its checksum does not match its content")
    try:
        return layout(Decoder(stream)).code(None)
    except _DAMAGE as error:
        raise CaffeError(f"is not a compact model that dns wrote: {error}") from None


def shared_values(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """The float16 numbers that the entries of a layer have, 0 aside, in ascending order.

    None where there are more than 256, or float16 does not hold them.
    """
    flat = np.concatenate([np.empty(0, np.float32), *(array.reshape(-1) for array in arrays)])
    if (np.signbit(flat) & (flat == 0)).any():
        return None
    values = np.unique(flat[flat != 0])
    if len(values) > _MOST_VALUES or not np.isfinite(values).all():
        return None
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    return halves if np.array_equal(halves.astype(np.float32), values) else None


def _is_suitable(contents: Contents) -> bool:
    """Whether layers with matrices share values, and have no more bits, as far as is easily seen.

    What is not foreseen here, the elements find out, but only after a while.
    """
    if sum(array.size for arrays in contents.blobs for array in arrays) > _MOST_ENTRIES:
        return False
    bits = 0
    for arrays in contents.blobs:
        values = shared_values(arrays)
        if values is None:
            if any(array.ndim > 1 for array in arrays):
                return False
            bits += 32 * sum(array.size for array in arrays)
            continue
        for matrix in _matrices([array.shape for array in arrays], arrays):
            live = (np.count_nonzero((matrix != 0).any(axis)) for axis in (0, 1))
            bits += sum(matrix.shape) + math.prod(live)
            bits += np.count_nonzero(matrix) * (len(values) - 1).bit_length()
    return bits <= MOST_BITS


class Layout:
    """The order in which things stand, for both directions: nothing is given when reading."""

    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        self._entries = 0
        #: How many entries each row of the last array with rows has.
        self._sources: list[int] = []

    def code(self, contents: Contents | None) -> Contents:
        """Write contents, or read them."""
        texts = [*contents.remarks, to_text(contents.definition)] if contents else []
        *remarks, text = self._texts(texts)
        definition = parse_text(text, NetParameter).message
        blobs = []
        for index, layer in enumerate(definition.layer):
            arrays = self._layer(index, layer, contents.blobs[index] if contents else None)
            if arrays and arrays[0].ndim > 1:
                axes = tuple(range(1, arrays[0].ndim))
                self._sources = np.count_nonzero(arrays[0], axis=axes).tolist()
            blobs.append(arrays)
        return Contents(definition, remarks, blobs)

    def _texts(self, texts: list[str]) -> list[str]:
        if any(mark in text for text in texts for mark in (_BETWEEN, "\0")):
            raise ValueError("a text has a byte that stands for its end")
        return self._elements.text(_BETWEEN.join(texts).encode()).decode().split(_BETWEEN)

    def _layer(
        self, index: int, layer: LayerParameter, arrays: list[np.ndarray] | None
    ) -> list[np.ndarray]:
        shapes = self._shapes(layer, [array.shape for array in arrays or []])
        if not shapes:
            return []
        shared = shared_values(arrays) if arrays is not None else None
        count = self._elements.integer("values", 0 if shared is None else len(shared) + 1)
        if not count:
            return [
                self._words(shape, arrays[place] if arrays else None)
                for place, shape in enumerate(shapes)
            ]
        values = self._values(count - 1, shared)
        grid = self._grid(index, shapes)
        given = _matrices(shapes, arrays)
        return _parted(shapes, [self._matrix(grid, values, matrix) for matrix in given])

    def _shapes(self, layer: LayerParameter, given: Sequence[Shape]) -> list[Shape]:
        count = self._elements.integer("arrays", len(given))
        if count > _MOST_ARRAYS:
            raise ValueError("a layer has too many arrays")
        shapes: list[Shape] = []
        likely = self._likely(layer) if count else ()
        for place in range(count):
            before = shapes[-1] if shapes else ()
            shapes.append(self._shape(given[place] if given else None, before, likely))
            # Rows are counted, even those without entries.
            self._entries += math.prod(max(extent, 1) for extent in shapes[-1])
            if self._entries > _MOST_ENTRIES:
                raise ValueError(f"it has more than {_MOST_ENTRIES} entries")
        return shapes

    def _likely(self, layer: LayerParameter) -> tuple[int, ...]:
        """What the first extents of a layer's arrays probably are or are multiples of."""
        text = to_text(layer)
        outputs, kernel = (re.search(rf"\b{name}: (\d+)", text) for name in _SIZES)
        return (
            int(outputs[1]) if outputs else 0,
            len(self._sources),
            *(int(kernel[1]) if kernel else 0,) * 2,
        )

    def _shape(self, given: Shape | None, before: Shape, likely: Sequence[int]) -> Shape:
        like_rows = bool(before) and given == before[:1]
        axes = self._elements.integer(
            "axes", _LIKE_ROWS if like_rows else len(given or ()), bool(before)
        )
        if axes == _LIKE_ROWS and before:
            return before[:1]
        if axes > _MOST_AXES:
            raise ValueError("an array has too many axes")
        known = given or (0,) * axes
        units = (*likely, *(0,) * axes)
        return tuple(
            self._extent(axis, extent, unit)
            for axis, (extent, unit) in enumerate(zip(known, units, strict=False))
        )

    def _extent(self, axis: int, extent: int, unit: int) -> int:
        """A number that probably is a multiple of a unit."""
        times = extent // unit if unit and extent % unit == 0 else 0
        times = self._elements.integer("times", times) if unit else 0
        return times * unit or self._elements.integer("extent", extent)

    def _words(self, shape: Shape, array: np.ndarray | None) -> np.ndarray:
        """An array whose values are not shared: all bits of all entries."""
        count = math.prod(shape)
        given = [0] * count if array is None else array.reshape(-1).view(np.uint32).tolist()
        words = [self._elements.word("word", 32, word) for word in given]
        return np.array(words, np.uint32).view(np.float32).reshape(shape)

    def _values(self, count: int, given: np.ndarray | None) -> np.ndarray:
        """The values that the entries of a layer share, as float32."""
        if count > _MOST_VALUES:
            raise ValueError("a layer has too many values")
        halves = [0] * count if given is None else given.view(np.uint16).tolist()
        words = [self._elements.word("value", 16, half) for half in halves]
        return np.array(words, np.uint16).view(np.float16).astype(np.float32)

    def _grid(self, index: int, shapes: Sequence[Shape]) -> Grid:
        """What the columns of a layer's matrix are."""
        return find_grid(index, math.prod(shapes[0][1:]), self._sources)

    def _matrix(self, grid: Grid, values: np.ndarray, given: np.ndarray) -> np.ndarray:
        """A matrix of entries that are 0 or one of `values`."""
        mask = self._elements.mask(grid, given != 0)
        if not len(values) and mask.any():
            raise ValueError("a layer has entries, but no values")
        wanted = np.searchsorted(values, given[mask])
        symbols = self._elements.symbols(grid, mask, len(values), wanted)
        if symbols.max(initial=0) >= max(len(values), 1):
            raise ValueError("an entry has a value that is not there")
        result = np.zeros(mask.shape, np.float32)
        result[mask] = values[symbols]
        return result


def _has_biases(shapes: Sequence[Shape]) -> bool:
    """Whether a layer's second array is one more column of its first."""
    return len(shapes) == 2 and len(shapes[0]) > 1 and shapes[1] == shapes[0][:1]


def _matrices(shapes: Sequence[Shape], arrays: list[np.ndarray] | None) -> Iterator[np.ndarray]:
    """The arrays of a layer as matrices; of zeros if none are given."""
    sizes = [(shape[0] if shape else 1, math.prod(shape[1:])) for shape in shapes]
    filled = arrays or [np.zeros(size, np.float32) for size in sizes]
    matrices = [array.reshape(size) for array, size in zip(filled, sizes, strict=True)]
    if _has_biases(shapes):
        yield np.concatenate(matrices, axis=1)
    else:
        yield from matrices


def _parted(shapes: Sequence[Shape], matrices: list[np.ndarray]) -> list[np.ndarray]:
    """The other way round."""
    if _has_biases(shapes):
        matrices = np.split(matrices[0], [matrices[0].shape[1] - 1], axis=1)
    return [matrix.reshape(shape) for matrix, shape in zip(matrices, shapes, strict=True)]
