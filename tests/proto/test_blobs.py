import numpy as np
import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.proto.blobs import array_to_blob, blob_shape, blob_to_array, packed_values
from caffe_dns.proto.caffe_pb2 import BlobProto, NetParameter
from caffe_dns.proto.text import read_binary
from tests.oracle import GOLDEN


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (20, 1, 5, 5), (0, 4), (300, 70)])
def test_arrays_round_trip(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    blob = array_to_blob(array)
    assert list(blob.data) == array.ravel().tolist()
    assert tuple(blob.shape.dim) == shape
    again = blob_to_array(blob)
    assert again.dtype == np.float32
    assert again.flags.writeable
    np.testing.assert_array_equal(again, array)
    assert again.shape == shape


def test_strided_and_double_arrays() -> None:
    array = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)
    blob = array_to_blob(array)
    assert tuple(blob.shape.dim) == (4, 2, 3)
    np.testing.assert_array_equal(blob_to_array(blob), array)


def test_recorded_models_read_as_protobuf_reads_them() -> None:
    net = read_binary(GOLDEN / "runs" / "bn_inception" / "snap_iter_40.caffemodel", NetParameter)
    blobs = [blob for layer in net.layer for blob in layer.blobs]
    assert len(blobs) > 10
    for blob in blobs:
        expected = np.array(blob.data, dtype=np.float32).reshape(tuple(blob.shape.dim))
        np.testing.assert_array_equal(blob_to_array(blob), expected)


def test_legacy_shapes_and_doubles() -> None:
    blob = BlobProto(num=1, channels=2, height=1, width=3, double_data=[0.1, 2, 3, 4, 5, 1e-3])
    expected = np.array([[[[0.1, 2, 3]], [[4, 5, 1e-3]]]], dtype=np.float32)
    np.testing.assert_array_equal(blob_to_array(blob), expected)
    # Where a blob has both, the doubles count, as in `Blob::FromProto`.
    blob.data.extend([9.0])
    np.testing.assert_array_equal(blob_to_array(blob), expected)
    assert blob_shape(BlobProto(num=5)) == (5, 0, 0, 0)


def test_values_on_the_wire_are_found_behind_everything_else() -> None:
    floats = np.arange(200, dtype=np.float32)
    blob = array_to_blob(floats)
    blob.num = 300
    blob.diff.extend([9.0] * 200)
    # Fields that a fork may have added, of all wire types: 20 a varint, 21 fixed64, 22 a string
    # that looks like data, 23 fixed32.
    blob.MergeFromString(b"\xa0\x01\x07\xa9\x01" + b"\x2a" * 8)
    blob.MergeFromString(b"\xb2\x01\x05\x2a\x04abc\xbd\x01" + b"\x2a" * 4)
    np.testing.assert_array_equal(packed_values(blob, 5, np.dtype("<f4")), floats)
    assert packed_values(blob, 8, np.dtype("<f8")).size == 0
    blob.double_data.extend([0.5, 1e-3])
    expected = np.array([0.5, 1e-3], dtype=np.float32)
    np.testing.assert_array_equal(packed_values(blob, 8, np.dtype("<f8")), expected)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (
            BlobProto(data=[1, 2]),
            "the blob holds 2 values, but its shape is that of a single value",
        ),
        (
            BlobProto(num=2, channels=3, height=1, width=1, data=[1.0]),
            "the blob holds 1 values, but its shape is 2 x 3 x 1 x 1",
        ),
        (
            BlobProto(shape={"dim": [2, 3]}),
            "the blob holds 0 values, but its shape is 2 x 3",
        ),
        (
            BlobProto(shape={"dim": [-2, -3]}, data=[0] * 6),
            "the blob has a negative extent: -2 x -3",
        ),
    ],
)
def test_inconsistent_blobs_are_refused(blob: BlobProto, message: str) -> None:
    with pytest.raises(CaffeError) as caught:
        blob_to_array(blob)
    assert str(caught.value) == message


@pytest.mark.parametrize(("number", "dtype"), [(0, "<f8"), (1, "<f4"), (2, "<f2")])
def test_blobs_as_nvcaffe_writes_them(number: int, dtype: str) -> None:
    values = np.array([[1.5, -2, 0.25], [3, 65504, -0.0]])
    blob = BlobProto(raw_data_type=number, raw_data=values.astype(dtype).tobytes())
    blob.shape.dim.extend(values.shape)
    # As another program would write it: type and bytes are fields 10 and 12.
    assert blob.SerializeToString().endswith(values.astype(dtype).tobytes())
    assert blob.SerializeToString()[-values.size * int(dtype[2]) - 4 :][0] == 10 << 3
    found = blob_to_array(blob)
    assert found.dtype == np.float32
    assert found.flags.writeable
    np.testing.assert_array_equal(found, values)


def test_raw_data_that_cannot_be() -> None:
    for number, raw, message in (
        (3, b"abcd", "raw_data_type is 3; known: 0 \\(float64\\), 1 \\(float32\\), 2 \\(float16"),
        (1, b"abc", "raw_data has 3 bytes, which are no whole numbers"),
        (1, b"abcdabcd", "holds 2 values, but its shape is 1"),
    ):
        blob = BlobProto(raw_data_type=number, raw_data=raw)
        blob.shape.dim.append(1)
        with pytest.raises(CaffeError, match=message):
            blob_to_array(blob)
