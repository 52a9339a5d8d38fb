"""Which JPEGs are left to a GPU: those that cameras and Caffe's tools write.

They have three channels of 8 bits as YCbCr, are sequential, in one scan, and whole. Whether the
rest of one is damaged, the decoder finds out.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from caffe_dns.data.image_headers import Buffer

#: Markers: the frame that is wanted, the scan, what Adobe and cameras write, and a frame's number.
_BASELINE, _SCAN, _CAMERA, _ADOBE = 0xC0, 0xDA, 0xE1, 0xEE
_OTHER_FRAMES = {*range(0xC1, 0xD0)} - {0xC4, 0xC8, 0xCC}
#: Those that have a length behind them.
_SEGMENTS = {*range(0xC0, 0xFF)} - {*range(0xD0, 0xDA)}
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
            except (struct.error, IndexError):
                return None
            self._known = header, kind
        return None if kind is None else (header, kind)

    def _read(self, data: Buffer) -> tuple[bytes, PlainJpeg | None]:
        """All up to the scan, or as much as tells that it is of another kind; and what it is."""
        if bytes(data[:2]) != _START:
            raise IndexError
        found: PlainJpeg | None = None
        at = 2
        while True:
            start, marker, length = struct.unpack_from(">BBH", data, at)
            end = at + 2 + length
            segment = bytes(data[at + 4 : end])
            if start != 0xFF or marker not in _SEGMENTS:  # libjpeg looks for the next one
                return bytes(data[:end]), None
            if marker == _SCAN:
                return bytes(data[:end]), found if segment[0] == len(_NUMBERS) else None
            if marker == _BASELINE:
                found = _frame(segment)
            if self._is_other(marker, segment) or (marker == _BASELINE and found is None):
                return bytes(data[:end]), None
            at = end

    def _is_other(self, marker: int, segment: bytes) -> bool:
        if marker == _CAMERA:
            return self._upright and segment.startswith(b"Exif")
        if marker == _ADOBE and segment.startswith(b"Adobe"):
            return segment[11] != _YCBCR
        return marker in _OTHER_FRAMES


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
