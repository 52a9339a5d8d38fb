"""`caffe.io`: arrays to and from the messages in Caffe's files, and images."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from caffe_dns.proto import caffe_pb2
from caffe_dns.proto.blobs import array_to_blob, blob_shape
from caffe_dns.proto.caffe_pb2 import BlobProto, BlobProtoVector, Datum
from caffe_dns.pycaffe.images import load_image, oversample, resize_image
from caffe_dns.pycaffe.transformer import Transformer

__all__ = [
    "Transformer",
    "array_to_blobproto",
    "array_to_datum",
    "arraylist_to_blobprotovector_str",
    "blobproto_to_array",
    "blobprotovector_str_to_arraylist",
    "caffe_pb2",
    "datum_to_array",
    "load_image",
    "oversample",
    "resize_image",
]


def blobproto_to_array(blob: BlobProto, return_diff: bool = False) -> np.ndarray:
    """The data, or the diff, of a stored blob in its shape, in float64.

    Raises ValueError when the number of values is not that of the shape.
    """
    values = blob.double_diff or blob.diff if return_diff else blob.double_data or blob.data
    return np.array(values, np.float64).reshape(blob_shape(blob))


def array_to_blobproto(arr: np.ndarray, diff: np.ndarray | None = None) -> BlobProto:
    """A blob with these data, and the diff if one is given."""
    return array_to_blob(arr, None if diff is None else np.asarray(diff))


def arraylist_to_blobprotovector_str(arraylist: Iterable[np.ndarray]) -> bytes:
    """The arrays as a serialised BlobProtoVector."""
    vector = BlobProtoVector(blobs=[array_to_blobproto(array) for array in arraylist])
    return vector.SerializeToString()


def blobprotovector_str_to_arraylist(str: bytes) -> list[np.ndarray]:
    """The arrays of a serialised BlobProtoVector."""
    return [blobproto_to_array(blob) for blob in BlobProtoVector.FromString(str).blobs]


def array_to_datum(arr: np.ndarray, label: int | None = None) -> Datum:
    """A record of an array [channels, height, width]: bytes if it is uint8, else floats.

    Raises ValueError for another number of axes.
    """
    if arr.ndim != 3:
        raise ValueError(f"a datum has three axes, the array {arr.ndim}")
    channels, height, width = arr.shape
    datum = Datum(channels=channels, height=height, width=width)
    if arr.dtype == np.uint8:
        datum.data = arr.tobytes()
    else:
        datum.float_data.extend(arr.astype(np.float32).ravel().tolist())
    if label is not None:
        datum.label = int(label)
    return datum


def datum_to_array(datum: Datum) -> np.ndarray:
    """The values of a record as [channels, height, width]: uint8 from bytes, else float64.

    Raises ValueError for an encoded image.
    """
    if datum.encoded:
        raise ValueError("the datum is an encoded image; decode its data first")
    shape = (datum.channels, datum.height, datum.width)
    if datum.data:
        return np.frombuffer(datum.data, np.uint8).reshape(shape).copy()
    return np.array(datum.float_data, np.float64).reshape(shape)
