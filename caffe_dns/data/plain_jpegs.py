"""Which JPEGs a GPU may decode: those that cameras and Caffe's tools write.

They have three channels of 8 bits as YCbCr, are sequential, in one scan, and complete, with a
header that libjpeg accepts. Whether the rest of one is damaged is for the decoder to find out.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

from caffe_dns.data.image_headers import Buffer

#: Markers: the frame that is wanted, the scan, what Adobe and cameras write.
_BASELINE, _SCAN, _CAMERA, _ADOBE = 0xC0, 0xDA, 0xE1, 0xEE
#: Those of Huffman codes, of quantities, of how often the scan begins anew, and of comments.
_CODES, _QUANTITIES, _INTERVAL, _COMMENT = 0xC4, 0xDB, 0xDD, 0xFE
_SEGMENTS = {_BASELINE, _CODES, _QUANTITIES, _INTERVAL, _SCAN, _COMMENT, *range(0xE0, 0xF0)}
_START, END = b"\xff\xd8", b"\xff\xd9"
#: Of a frame's channels: their numbers as JFIF has them, and how densely the second and third are
#: sampled; the first is up to twice as dense.
_NUMBERS, _CHROMA, _LUMA = (1, 2, 3), 0x11, {0x11, 0x12, 0x21, 0x22}
#: Larger ones are left to who asks how much memory they may take.
_MOST_PIXELS = 1 << 24
#: Of a few columns libjpeg makes no colours between those that are there.
_SMALLEST = 8
#: What Adobe calls YCbCr.
_YCBCR = 1
#: What stands at the end of a scan's header where it has all coefficients.
_ALL = b"\0\x3f\0"
#: Numbers in a table of quantities, lengths that a code may have, and what the first code of a
#: block may stand for, at most: so many bits.
_NUMBERS_OF_A_BLOCK, _LENGTHS, _MOST_BITS = 64, 16, 15
#: How many tables there may be of each kind.
_TABLES = 4
#: Which table: 0 and 1 for Huffman codes of the first coefficient and of others, 2 for quantities,
#: and its number.
Table: TypeAlias = "tuple[int, int]"


class PlainJpeg(NamedTuple):
    """Height and width of such a JPEG, and of how many rows and columns it has one colour."""

    height: int
    width: int
    rows: int
    columns: int


class PlainJpegs:
    """Looks at JPEGs, most of which have the same header as one before. Threads may use it.

    With `upright`, those are left out that may say that they are to be turned.
    """

    def __init__(self, *, upright: bool) -> None:
        self._upright = upright
        self._known: tuple[bytes, PlainJpeg | None] = (b"", None)

    def look_at(self, data: Buffer) -> PlainJpeg | None:
        """What a JPEG of that kind is, None for others."""
        found = self.read(data)
        return None if found is None else found[1]

    def read(self, data: Buffer) -> tuple[bytes, PlainJpeg] | None:
        """The header of a JPEG of that kind, up to its scan, and what it says; None for others.

        JPEGs with the same header are alike, if they are whole.
        """
        if bytes(data[-2:]) != END:
            return None
        header, kind = self._known
        if not header or bytes(data[: len(header)]) != header:
            try:
                header, kind = self._read(data)
            except (struct.error, IndexError, ValueError):
                return None
            self._known = header, kind
        return None if kind is None else (header, kind)

    def _read(self, data: Buffer) -> tuple[bytes, PlainJpeg | None]:
        """All up to the scan, or as much as tells that it is of another kind; and what it is."""
        if bytes(data[:2]) != _START:
            raise ValueError
        found: PlainJpeg | None = None
        wanted: set[Table] = set()
        tables: set[Table] = set()
        at = 2
        while True:
            start, marker, length = struct.unpack_from(">BBH", data, at)
            end = at + 2 + length
            segment = bytes(data[at + 4 : end])
            if start != 0xFF or marker not in _SEGMENTS:  # libjpeg may look for the next one
                return bytes(data[:end]), None
            if marker == _SCAN:
                is_whole = tables >= wanted | _tables_of_scan(segment)
                return bytes(data[:end]), found if is_whole else None
            if marker == _BASELINE:
                again, found, wanted = found is not None, _frame(segment), _tables_of_frame(segment)
                if again or found is None:
                    return bytes(data[:end]), None
            if self._is_other(marker, segment):
                return bytes(data[:end]), None
            tables |= _tables(marker, segment)
            at = end

    def _is_other(self, marker: int, segment: bytes) -> bool:
        if marker == _CAMERA:
            return self._upright and segment.startswith(b"Exif")
        if marker == _ADOBE and segment.startswith(b"Adobe"):
            return segment[11] != _YCBCR
        return marker == _INTERVAL and len(segment) != 2


def _tables(marker: int, segment: bytes) -> set[Table]:
    """The tables in a segment. Raises IndexError or ValueError where libjpeg may refuse them."""
    found = set()
    while segment and marker in (_CODES, _QUANTITIES):
        kind, number = divmod(segment[0], 16)
        if marker == _QUANTITIES:
            kind, end = kind + 2, 1 + _NUMBERS_OF_A_BLOCK
        else:
            counts = segment[1 : 1 + _LENGTHS]
            end = 1 + _LENGTHS + sum(counts)
            most = max(segment[1 + _LENGTHS : end], default=0) if kind == 0 else 0
            if not _is_code(counts) or most > _MOST_BITS:
                raise ValueError
        if kind > 2 or (marker == _CODES and kind == 2):
            raise ValueError
        if number >= _TABLES or len(segment) < end:
            raise ValueError
        found.add((kind, number))
        segment = segment[end:]
    return found


def _is_code(counts: bytes) -> bool:
    """Whether there can be so many words of 1, 2 ... bits, none of which is all ones."""
    used = 0
    for bits, count in enumerate(counts, 1):
        used = 2 * used + count
        if used >= 1 << bits:
            return False
    return sum(counts) <= 1 << 8


def _tables_of_frame(header: bytes) -> set[Table]:
    return {(2, number) for number in header[8::3]}


def _tables_of_scan(header: bytes) -> set[Table]:
    """Those of Huffman codes. Raises ValueError for other scans than of all that there is."""
    numbers = header[1:-3:2]
    if header[:1] != b"\3" or header[-3:] != _ALL or tuple(numbers) != _NUMBERS:
        raise ValueError
    chosen = [divmod(both, 16) for both in header[2:-3:2]]
    return {(0, first) for first, _ in chosen} | {(1, others) for _, others in chosen}


def _frame(header: bytes) -> PlainJpeg | None:
    """What a frame's header says, if it is of that kind."""
    bits, height, width, count = struct.unpack_from(">BHHB", header)
    channels = [*struct.iter_unpack("BBB", header[6:])]
    if bits != 8 or count != len(_NUMBERS) or tuple(c[0] for c in channels) != _NUMBERS:
        return None
    luma, *chroma = (density for _, density, _ in channels)
    if luma not in _LUMA or chroma != [_CHROMA, _CHROMA]:
        return None
    if min(height, width) < _SMALLEST or height * width > _MOST_PIXELS:
        return None
    return PlainJpeg(height, width, luma & 0xF, luma >> 4)
