"""CRC-32C, the checksum in LevelDB's files, at the speed of numpy.

The data are cut into lanes of equal length that are processed side by side, byte by byte. A lane's
checksum is then moved to its place by a linear map, since a checksum is linear in its data. The
pieces of long data are combined in the same way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

Words: TypeAlias = "np.ndarray[Any, np.dtype[np.uint32]]"

_POLYNOMIAL = 0x82F63B78
_LANE = 256
#: Bytes that are gone through at once, with memory for a few times as many; a power of two.
_PIECE = 1 << 20
_MASK_DELTA = 0xA282EAD8
_BITS = np.arange(32, dtype=np.uint32)


def masked_crc32c(data: bytes) -> bytes:
    """The checksum of `data` as LevelDB stores it: rotated and shifted, four bytes."""
    crc = crc32c(data)
    masked = ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF
    return masked.to_bytes(4, "little")


def crc32c(data: bytes) -> int:
    """The CRC-32C of `data`, a number of 32 bits."""
    crc = np.zeros(1, np.uint32)
    rest = len(data) % _PIECE
    for start in range(rest - _PIECE if rest else 0, len(data), _PIECE):
        crc = _apply(_zeros_map(_PIECE), crc) ^ _crc_of(data[max(0, start) : start + _PIECE])
    return int(crc[0])


def _crc_of(data: bytes) -> np.uint32:
    """The CRC-32C of some bytes that are gone through at once."""
    if len(data) < 4:
        register = np.array([0xFFFFFFFF], np.uint32)
        for byte in data:
            register = _with_byte(register, np.uint32(byte))
        return np.uint32(register[0] ^ np.uint32(0xFFFFFFFF))

    count = 1
    while count * _LANE < len(data):
        count *= 2
    # A register that starts with ones is the same as inverting the first four bytes; zeros that
    # come before them change nothing.
    padded = np.zeros(count * _LANE, np.uint8)
    start = len(padded) - len(data)
    padded[start:] = np.frombuffer(data, np.uint8)
    padded[start : start + 4] ^= 0xFF
    registers = np.zeros(count, np.uint32)
    for column in np.ascontiguousarray(padded.reshape(count, _LANE).T):
        registers = _with_byte(registers, column)
    length = _LANE
    while len(registers) > 1:
        registers = _apply(_zeros_map(length), registers[0::2]) ^ registers[1::2]
        length *= 2
    return np.uint32(registers[0] ^ np.uint32(0xFFFFFFFF))


def _with_byte(registers: Words, byte: Any) -> Words:
    """The registers after one more byte each."""
    return _table()[(registers ^ byte) & 0xFF] ^ (registers >> 8)


@lru_cache(maxsize=1)
def _table() -> Words:
    """What each value of a byte does to an empty register."""
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, values >> 1 ^ np.uint32(_POLYNOMIAL), values >> 1)
    return values


@lru_cache(maxsize=32)
def _zeros_map(length: int) -> Words:
    """What `length` zero bytes, a power of two, do to each bit of a register. [32]"""
    if length == 1:
        return _with_byte(np.uint32(1) << _BITS, np.uint32(0))
    half = _zeros_map(length // 2)
    return _apply(half, half)


def _apply(bit_map: Words, registers: Words) -> Words:
    """The image of each register: the sum, modulo 2, of the images of its bits."""
    bits = registers[:, None] >> _BITS & 1
    return np.bitwise_xor.reduce(bits * bit_map, axis=1)
