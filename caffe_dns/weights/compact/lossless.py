"""Compact files of version 1: every bit of every weight that is not zero.

After the eight bytes that all versions begin with, numbers little-endian:

    32 bytes  SHA-256 of everything after it
    section   the header, JSON: definition, shapes, how many entries each array has, sizes
    section   distances between the entries, 7 bits a byte, the last byte of a number below 128
    section   lowest bytes of the entries; then the other three kinds, one section each

An entry is a float32 whose bits are not all 0. A section starts with its length when packed
(4 bytes), the header's also with its length unpacked; see `sections` for the packing.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from caffe_dns.errors import CaffeError
from caffe_dns.files.reading import may_take
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.text import parse_text, to_text
from caffe_dns.weights.compact.contents import Contents
from caffe_dns.weights.compact.sections import pack, unpack

VERSION = 1
_DIGEST = hashlib.sha256().digest_size
_LENGTH = struct.Struct("<I")
_PLANES = 4
#: What taking a damaged file apart may raise.
_DAMAGE = (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    OverflowError,
    RecursionError,
    struct.error,
)
#: As many as a blob can have (`Blob::Reshape`).
_MOST_VALUES = 2**31 - 1
#: Bytes that reading takes for each entry, and for an array beside those.
_ENTRY, _ARRAY = 32, 1024
#: Bytes that a byte may become: an entry has a bit at least, of its sign.
_PER_BYTE = 8 * _ENTRY
#: The most bytes of a distance: of a place among as many as fit in memory.
_LONGEST = 7
#: More than any definition needs; what claims to be longer is not a header.
_MAX_HEADER = 2**26


def encode(contents: Contents) -> bytes:
    """What follows the first eight bytes."""
    distances: list[np.ndarray] = []
    values: list[np.ndarray] = []
    entries: list[list[int]] = []
    for arrays in contents.blobs:
        entries.append([])
        for array in arrays:
            bits = np.ascontiguousarray(array, "<f4").reshape(-1).view("<u4")
            places = np.flatnonzero(bits)
            distances.append(np.diff(places, prepend=-1))
            values.append(bits[places])
            entries[-1].append(len(places))
    packed_distances = _to_varints(_joined(distances, np.int64))
    planes = _joined(values, "<u4").view(np.uint8).reshape(-1, _PLANES).T
    header = {
        "definition": to_text(contents.definition),
        "remarks": contents.remarks,
        "shapes": [[list(array.shape) for array in arrays] for arrays in contents.blobs],
        "entries": entries,
        "distances": len(packed_distances),
    }
    raw = json.dumps(header, separators=(",", ":")).encode()
    sections = [pack(part) for part in (raw, packed_distances, *map(np.ndarray.tobytes, planes))]
    body = _LENGTH.pack(len(raw)) + b"".join(_LENGTH.pack(len(s)) + s for s in sections)
    return hashlib.sha256(body).digest() + body


def decode(raw: bytes) -> Contents:
    """The contents of such bytes; raises CaffeError when they are damaged."""
    if hashlib.sha256(raw[_DIGEST:]).digest() != raw[:_DIGEST]:
        raise CaffeError("is damaged: its checksum does not match its content")
    try:
        return _parse(raw[_DIGEST:])
    except _DAMAGE as error:
        raise CaffeError(f"is not a compact model that dns wrote: {error}") from None


def _parse(body: bytes) -> Contents:
    (header_size,) = _LENGTH.unpack_from(body)
    if header_size > _MAX_HEADER:
        raise ValueError("the header is too long")
    packed_header, packed_distances, *packed_planes = _split(body[_LENGTH.size :])
    header: dict[str, Any] = json.loads(unpack(packed_header, header_size))
    definition = parse_text(header["definition"], NetParameter).message
    shapes, entries = header["shapes"], header["entries"]
    count = _count(entries, len(definition.layer), len(body))
    distances = _from_varints(unpack(packed_distances, header["distances"]), count)
    planes = [np.frombuffer(unpack(plane, count), np.uint8) for plane in packed_planes]
    bits = np.ascontiguousarray(np.stack(planes, axis=1)).view("<u4").reshape(-1)
    blobs: list[list[np.ndarray]] = []
    at = 0
    for layer_shapes, layer_entries in zip(shapes, entries, strict=True):
        blobs.append([])
        for shape, used in zip(layer_shapes, layer_entries, strict=True):
            blobs[-1].append(_restore(shape, distances[at : at + used], bits[at : at + used]))
            at += used
    return Contents(definition, list(header["remarks"]), blobs)


def _count(entries: list[list[int]], layers: int, size: int) -> int:
    """How many entries there are in all. Raises ValueError for more than `size` bytes may hold."""
    if len(entries) != layers:
        raise ValueError("it has arrays for another number of layers")
    if min((used for layer in entries for used in layer), default=0) < 0:
        raise ValueError("an array has fewer entries than none")
    count = sum(map(sum, entries))
    arrays = sum(map(len, entries))
    if not may_take(_ENTRY * count + _ARRAY * arrays, size, _PER_BYTE):
        raise ValueError(f"it claims {count} entries in {arrays} arrays")
    return count


def _restore(shape: list[int], distances: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """An array from the distances between its entries and their bits."""
    places = np.cumsum(distances) - 1
    if math.prod(shape) > _MOST_VALUES:
        raise ValueError(f"an array claims the shape {shape}")
    flat = np.zeros(math.prod(shape), "<u4")
    if len(places) and (int(distances.min()) < 1 or int(places[-1]) >= flat.size):
        raise ValueError("an entry lies outside its array")
    flat[places] = bits
    return flat.view("<f4").reshape(shape).astype(np.float32, copy=False)


def _split(body: bytes) -> Iterator[bytes]:
    at = 0
    for _ in range(2 + _PLANES):
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        yield body[at : at + length]
        at += length
    if at != len(body):
        raise ValueError("it has another length")


def _joined(arrays: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *arrays]).astype(dtype, copy=False)


def _to_varints(numbers: np.ndarray) -> bytes:
    """Numbers from 1 on, 7 bits a byte from the lowest; all bytes but a number's last add 128."""
    if not len(numbers):
        return b""
    rows = []
    while True:
        rows.append((numbers & 127).astype(np.uint8))
        numbers = numbers >> 7
        if not numbers.any():
            break
    columns = np.stack(rows, axis=1)
    lengths = columns.shape[1] - np.argmax(columns[:, ::-1] != 0, axis=1)
    used = np.arange(columns.shape[1]) < lengths[:, None]
    more = np.arange(columns.shape[1]) < lengths[:, None] - 1
    return (columns | (more * np.uint8(128)))[used].tobytes()


def _from_varints(raw: bytes, count: int) -> np.ndarray:
    """The `count` numbers that `_to_varints` wrote."""
    parts = np.frombuffer(raw, np.uint8)
    ends = np.flatnonzero(parts < 128)
    if len(ends) != count or (len(parts) and ends[-1:] != len(parts) - 1):
        raise ValueError("it has another number of distances")
    numbers = np.zeros(count, np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64) if count else ends
    longest = int((ends - starts).max(initial=-1)) + 1
    if longest > _LONGEST:
        raise ValueError("a distance is too large")
    for digit in range(longest):
        inside = starts + digit <= ends
        numbers[inside] |= (parts[(starts + digit)[inside]] & 127).astype(np.int64) << (7 * digit)
    return numbers
