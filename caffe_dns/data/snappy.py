"""Decompresses Snappy, the compression inside LevelDB's tables. Compression is not needed here."""

from __future__ import annotations

from caffe_dns.errors import CaffeError
from caffe_dns.files.reading import may_take

#: A number of more bits is none.
_LONGEST = 63
_LITERAL, _COPY1, _COPY2 = 0, 1, 2


def decompress(data: bytes) -> bytes:
    """The bytes that `data`, one whole Snappy block, stands for.

    Raises CaffeError if it is damaged.
    """
    output = bytearray()
    end = len(data)
    try:
        size, position = read_varint(data, 0)
        if not may_take(size, end):
            raise CaffeError(f"damaged: a block claims {size} bytes")
        while position < end and len(output) <= size:
            tag = data[position]
            position += 1
            if tag & 3 == _LITERAL:
                length = (tag >> 2) + 1
                if length > 60:
                    width = length - 60
                    length = int.from_bytes(data[position : position + width], "little") + 1
                    position += width
                output += data[position : position + length]
                position += length
                continue
            if tag & 3 == _COPY1:
                length = (tag >> 2 & 7) + 4
                offset = tag >> 5 << 8 | data[position]
                position += 1
            else:
                width = 2 if tag & 3 == _COPY2 else 4
                length = (tag >> 2) + 1
                offset = int.from_bytes(data[position : position + width], "little")
                position += width
            start = len(output) - offset
            if start < 0 or offset == 0:
                raise IndexError
            if offset >= length:
                output += output[start : start + length]
            else:
                # The copy reaches into what it writes: a pattern that repeats.
                output += (output[start:] * (length // offset + 1))[:length]
    except IndexError:
        raise CaffeError("damaged: not Snappy data") from None
    if len(output) != size or position != end:
        raise CaffeError("damaged: not Snappy data")
    return bytes(output)


def read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """The base-128 number at `position`, and the position after it. IndexError at the end."""
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
        if shift > _LONGEST:
            raise IndexError
