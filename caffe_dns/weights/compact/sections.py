"""Byte strings, compressed by whatever in the standard library makes them smallest.

The first byte of a section says how; the reader knows its uncompressed length.
"""

from __future__ import annotations

import lzma
import zlib

_STORED, _ZLIB, _LZMA = 0, 1, 2
#: LZMA takes a second for a megabyte, and zlib's best not much less; longer strings do without.
_LIMIT = 8 * 2**20
#: Without container, and with a dictionary no larger than what it is used for.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": _LIMIT, "lc": 0, "pb": 0}]


def pack(raw: bytes) -> bytes:
    """The smallest section with these bytes."""
    short = len(raw) <= _LIMIT
    stored = bytes([_STORED]) + raw
    # Bytes of weights do not repeat, but some are more frequent than others: Huffman codes then
    # are smaller than what a search for repetitions finds, and made in no time.
    repeats = _deflate(raw, 9 if short else 4, zlib.Z_DEFAULT_STRATEGY)
    smallest = min(stored, repeats, _deflate(raw, 9, zlib.Z_HUFFMAN_ONLY), key=len)
    if smallest is stored or not short:
        return smallest
    packed = lzma.compress(raw, format=lzma.FORMAT_RAW, filters=_FILTERS)
    return min(smallest, bytes([_LZMA]) + packed, key=len)


def _deflate(raw: bytes, level: int, strategy: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return bytes([_ZLIB]) + packer.compress(raw) + packer.flush()


def unpack(section: bytes, size: int) -> bytes:
    """The `size` bytes of a section; raises ValueError when it does not hold just those."""
    method, packed = section[:1], section[1:]
    try:
        if method == bytes([_STORED]):
            raw = packed
        elif method == bytes([_ZLIB]):
            raw = zlib.decompressobj().decompress(packed, size + 1)
        elif method == bytes([_LZMA]):
            decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
            raw = decompressor.decompress(packed, size + 1)
        else:
            raise ValueError("unknown compression")
    except (zlib.error, lzma.LZMAError) as error:
        raise ValueError(str(error)) from None
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes instead of {size}")
    return raw
