"""BlobProto <-> numpy array, without a loop over the values.

Packed values are plain little-endian numbers in a serialised message, so they are written there as
one block. They are also read from there where protobuf's containers cannot hand them to numpy: one
by one, a model of 60 million weights takes ten seconds.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from caffe_dns.errors import CaffeError
from caffe_dns.files.finite import check_finite
from caffe_dns.proto.caffe_pb2 import BlobProto
from caffe_dns.proto.text import MAX_BYTES
from caffe_dns.proto.wire import LENGTH, Piece, embedded, read_fields

#: As Caffe's `kMaxBlobAxes` (blob.hpp).
MOST_AXES = 32

_FLOATS = np.dtype("<f4")
_DOUBLES = np.dtype("<f8")
#: Types of numbers by NVCaffe's raw_data_type.
_RAW_TYPES = {0: "float64", 1: "float32", 2: "float16"}


def blob_to_array(blob: BlobProto, what: str = "the blob") -> NDArray[np.float32]:
    """The values of `blob` in its shape, as a new float32 array (`Blob::FromProto`).

    The shape is (num, channels, height, width) where a file older than BlobShape gives those.
    Raises CaffeError, which says `what` is wrong, when the number of values is not that of the
    shape, or one is not finite.
    """
    shape = blob_shape(blob)
    if len(shape) > MOST_AXES:
        raise CaffeError(f"{what} has {len(shape)} axes; Caffe's blobs have up to {MOST_AXES}")
    values = _values(blob)
    if values.size != math.prod(shape):
        raise _wrong_count(what, values.size, shape)
    values = values.reshape(shape)
    check_finite(values, what)
    return values


def _values(blob: BlobProto) -> NDArray[np.float32]:
    if blob.HasField("raw_data"):
        return _raw_values(blob)
    container = blob.double_data or blob.data
    if hasattr(container, "__array__"):  # protobuf 7
        return np.array(container, dtype=np.float32)
    if blob.double_data:
        return packed_values(blob, BlobProto.DOUBLE_DATA_FIELD_NUMBER, _DOUBLES)
    return packed_values(blob, BlobProto.DATA_FIELD_NUMBER, _FLOATS)


def _raw_values(blob: BlobProto) -> NDArray[np.float32]:
    if blob.raw_data_type not in _RAW_TYPES:
        known = ", ".join(f"{number} ({dtype})" for number, dtype in _RAW_TYPES.items())
        raise CaffeError(f"the blob's raw_data_type is {blob.raw_data_type}; known: {known}")
    dtype = np.dtype(_RAW_TYPES[blob.raw_data_type]).newbyteorder("<")
    if len(blob.raw_data) % dtype.itemsize:
        raise CaffeError(
            f"the blob's raw_data has {len(blob.raw_data)} bytes, which are no whole numbers"
        )
    return np.frombuffer(blob.raw_data, dtype).astype(np.float32)


def _wrong_count(what: str, count: int, shape: tuple[int, ...]) -> CaffeError:
    extents = " x ".join(map(str, shape)) or "that of a single value"
    message = f"{what} holds {count} values, but its shape is {extents}"
    return CaffeError(message)


def blob_shape(blob: BlobProto) -> tuple[int, ...]:
    """The shape that a blob declares; () for a single value."""
    legacy = ("num", "channels", "height", "width")
    if any(blob.HasField(name) for name in legacy):
        shape = tuple(getattr(blob, name) for name in legacy)
    else:
        shape = tuple(blob.shape.dim)
    if any(extent < 0 for extent in shape):
        raise CaffeError(f"the blob has a negative extent: {' x '.join(map(str, shape))}")
    return shape


def array_to_blob(
    array: NDArray[np.floating], diff: NDArray[np.floating] | None = None
) -> BlobProto:
    """A blob with the shape and the values of `array`, as float32 (`Blob::ToProto`).

    `diff` has as many values. Raises CaffeError for more than a message can hold.
    """
    return BlobProto.FromString(b"".join(blob_pieces(array, diff)))


def blob_pieces(
    array: NDArray[np.floating], diff: NDArray[np.floating] | None = None
) -> list[Piece]:
    """`array_to_blob` in the wire format; values that are float32 stay where they are."""
    size = _FLOATS.itemsize * array.size * (1 if diff is None else 2)
    if size > MAX_BYTES:
        raise CaffeError(
            f"a blob of {size} bytes is more than the 2 GiB that protobuf can read; "
            "HDF5 has no such limit"
        )
    pieces = _packed(BlobProto.DATA_FIELD_NUMBER, array)
    if diff is not None:
        pieces += _packed(BlobProto.DIFF_FIELD_NUMBER, diff)
    shape = BlobProto()
    shape.shape.dim.extend(array.shape)
    return [*pieces, shape.SerializeToString()]


def _packed(number: int, array: NDArray[np.floating]) -> list[Piece]:
    """A field of packed floats in the wire format; nothing where there are none."""
    raw = np.ascontiguousarray(array, dtype=_FLOATS).reshape(-1).view(np.uint8)
    return embedded(number, [raw.data]) if raw.size else []


def packed_values(blob: BlobProto, number: int, dtype: np.dtype) -> NDArray[np.float32]:
    """The values of a packed field, from the wire format; empty where the blob has none."""
    message = memoryview(blob.SerializeToString())
    for field in read_fields(message):
        if (field.number, field.wire_type) == (number, LENGTH):
            return np.frombuffer(message[field.value : field.end], dtype).astype(np.float32)
    return np.empty(0, np.float32)
