"""The header of an image, for each format that OpenCV reads: pixels, and the memory they take.

Only the size is read. Whether the rest is an image is for the decoder to find out.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

Buffer: TypeAlias = "bytes | memoryview"

#: Pixels of all scans of an image together: a core decodes 900 million in a second.
MOST_SCANNED = 1 << 32
#: Where the size is looked for in kinds that have it behind other things.
_HEAD = 1 << 20
#: Of a JPEG: markers with the size behind them, those of several scans among these, and alone.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SCAN, _SHORTEST_SCAN = b"\xff\xda", 10
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_ALONE = {0x00, 0x01, *range(0xD0, 0xD9), 0xFF}
#: With these a JPEG 2000 begins, inside of a file of boxes or alone.
_CODESTREAM = b"\xff\x4f\xff\x51"
#: What says of a PNG, before its pixels, that it has several frames, and the flag of a WebP.
_ANIMATED_PNG, _ANIMATED_WEBP = b"acTL", 2
_RADIANCE = re.compile(rb"\n[-+][XY] (\d{1,9}) [-+][XY] (\d{1,9})\n")
#: Tags of TIFF, and the types of their numbers.
_WIDTH, _HEIGHT, _BITS, _SAMPLES = 256, 257, 258, 277
_BIG_TIFF, _MOST_TAGS = 43, 0xFFFF
_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
#: Extents of an image in AVIF, or of a tile of it, and what says that it has alpha.
_AVIF_EXTENTS, _AVIF_ALPHA = re.compile(rb"ispe\0{4}(.{8})", re.DOTALL), b"auxC"


class Claim(NamedTuple):
    """The size of an image, and how many bytes each pixel takes while cv2.imdecode decodes it.

    It gives out a copy of what it has decoded, so these are twice those of a pixel at least.
    """

    width: int
    height: int
    bytes_each: int = 6
    #: How often a decoder goes through all pixels, or 1 where that cannot be too often.
    scans: int = 1

    @property
    def memory(self) -> int:
        return self.width * self.height * self.bytes_each


def claim_of(data: Buffer) -> Claim | None:
    """What the image claims; None where its kind is not known or its header not whole."""
    for start, read in _KINDS.items():
        if start.match(data):
            try:
                return read(data)
            except (struct.error, IndexError, KeyError, OverflowError, ValueError):
                return None
    return None


def _at(offset: int, form: str, bytes_each: int = 6) -> Callable[[Buffer], Claim]:
    """Reads width and height, which stand at an offset."""

    def read(data: Buffer) -> Claim:
        width, height = map(abs, struct.unpack_from(form, data, offset))
        return Claim(width, height, bytes_each)

    return read


def _bmp(data: Buffer) -> Claim:
    # In the oldest headers, of 12 bytes, these have two bytes each.
    (length,) = struct.unpack_from("<I", data, 14)
    return _at(18, "<HH" if length == 12 else "<ii")(data)


def _png(data: Buffer) -> Claim:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    samples = {0: 1, 2: 3, 4: 4, 6: 4}.get(colour, 3)
    if _ANIMATED_PNG in bytes(data[:_HEAD]).partition(b"IDAT")[0]:
        return Claim(width, height, max(16, 2 * bits))
    return Claim(width, height, max(6, 2 * samples * bits // 8))


def _jpeg(data: Buffer) -> Claim:
    head = bytes(data[:_HEAD])
    at = head.index(b"\xff", 2)
    while True:
        marker, length = head[at + 1], 0
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", head, at + 5)
            several = marker in _PROGRESSIVE
            # Others may come in several, too, but to count is a twentieth of the work of decoding.
            most = len(data) // _SHORTEST_SCAN
            count = several or width * height * most > MOST_SCANNED
            scans = bytes(data).count(_SCAN) if count else 1
            # Of several scans, all coefficients are kept beside the pixels.
            return Claim(width, height, 9 if several else 6, scans)
        if marker not in _ALONE:
            (length,) = struct.unpack_from(">H", head, at + 2)
        # Between segments, libjpeg passes over whatever is not the next one.
        at = head.index(b"\xff", at + (1 if marker == 0xFF else 2 + length))


def _webp(data: Buffer) -> Claim:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return Claim(width, height, 12 if data[20] & _ANIMATED_WEBP else 8)
    if kind == b"VP8L":
        (both,) = struct.unpack_from("<I", data, 21)
        return Claim((both & 0x3FFF) + 1, (both >> 14 & 0x3FFF) + 1, 8)
    width, height = struct.unpack_from("<HH", data, 26)
    return Claim(width & 0x3FFF, height & 0x3FFF)


def _jpeg_2000(data: Buffer) -> Claim:
    head = bytes(data[:_HEAD])
    right, bottom, left, top = struct.unpack_from(">IIII", head, head.index(_CODESTREAM) + 8)
    return Claim(max(0, right - left), max(0, bottom - top), 15)


def _radiance(data: Buffer) -> Claim:
    found = _RADIANCE.search(bytes(data[:_HEAD]))
    if found is None:
        raise ValueError
    return Claim(int(found[2]), int(found[1]), 24)


def _avif(data: Buffer) -> Claim:
    head = bytes(data[:_HEAD])
    extents = [struct.unpack(">II", found) for found in _AVIF_EXTENTS.findall(head)]
    width, height = max(extents, key=math.prod)
    return Claim(width, height, 36 if _AVIF_ALPHA in head else 22)


def _tiff(data: Buffer) -> Claim:
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(f"{order}H", data, 2)
    # In BigTIFF, offsets have eight bytes.
    offset, word, counter = ("Q", 8, "Q") if version == _BIG_TIFF else ("I", 4, "H")
    (at,) = struct.unpack_from(f"{order}{offset}", data, word)
    (count,) = struct.unpack_from(f"{order}{counter}", data, at)
    at += struct.calcsize(f"{order}{counter}")
    step = 4 + 2 * word
    tags = {}
    for entry in range(at, at + step * min(count, _MOST_TAGS), step):
        tag, kind, length = struct.unpack_from(f"{order}HH{offset}", data, entry)
        if tag in (_WIDTH, _HEIGHT, _BITS, _SAMPLES):
            form = f"{order}{_NUMBERS[kind]}"
            place = entry + 4 + word
            if length * struct.calcsize(form) > word:
                (place,) = struct.unpack_from(f"{order}{offset}", data, place)
            (tags[tag],) = struct.unpack_from(form, data, place)
    size = -(-tags.get(_BITS, 1) // 8) * tags.get(_SAMPLES, 1)
    return Claim(tags[_WIDTH], tags[_HEIGHT], max(6, 2 * size))


#: By what files begin with. Those of other kinds (PPM, PFM) are as long as what they claim.
_STARTS: dict[bytes, Callable[[Buffer], Claim]] = {
    rb"\xff\xd8": _jpeg,
    rb"\x89PNG\r\n\x1a\n": _png,
    rb"BM": _bmp,
    rb"GIF8": _at(6, "<HH", 13),
    rb"\x59\xa6\x6a\x95": _at(4, ">II"),
    rb"RIFF.{4}WEBP": _webp,
    rb"II[*+]\0|MM\0[*+]": _tiff,
    rb"\0\0\0\x0cjP|\xff\x4f\xff\x51": _jpeg_2000,
    rb".{4}ftyp": _avif,
    rb"#\?": _radiance,
}
_KINDS = {re.compile(start, re.DOTALL): read for start, read in _STARTS.items()}
