"""caffe.io: messages and arrays."""

from __future__ import annotations

import numpy as np
import pytest

import caffe_dns.pycaffe as caffe
from caffe_dns.data.datum import parse_datum
from caffe_dns.proto.blobs import blob_to_array
from caffe_dns.proto.caffe_pb2 import BlobProto, Datum

ARRAY = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def test_blobs() -> None:
    blob = caffe.io.array_to_blobproto(ARRAY, 2 * ARRAY)
    assert np.array_equal(blob_to_array(blob), ARRAY)
    assert np.array_equal(caffe.io.blobproto_to_array(blob), ARRAY)
    assert np.array_equal(caffe.io.blobproto_to_array(blob, return_diff=True), 2 * ARRAY)


def test_blobs_of_other_kinds() -> None:
    old = BlobProto(num=1, channels=2, height=1, width=3, data=range(6))
    assert caffe.io.blobproto_to_array(old).tolist() == [[[[0, 1, 2]], [[3, 4, 5]]]]
    assert caffe.io.blobproto_to_array(BlobProto(data=[4])) == 4
    double = BlobProto(double_data=[0.1, 0.2])
    double.shape.dim.append(2)
    assert caffe.io.blobproto_to_array(double).tolist() == [0.1, 0.2]
    with pytest.raises(ValueError, match="cannot reshape"):
        caffe.io.blobproto_to_array(BlobProto(data=[1, 2]))


def test_lists_of_blobs() -> None:
    arrays = [ARRAY, np.zeros((0, 2), np.float32), np.float32(3).reshape(())]
    text = caffe.io.arraylist_to_blobprotovector_str(arrays)
    back = caffe.io.blobprotovector_str_to_arraylist(text)
    assert [a.shape for a in back] == [a.shape for a in arrays]
    assert np.array_equal(back[0], ARRAY) and back[2] == 3


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int16])
def test_records(dtype: type) -> None:
    array: np.ndarray = np.arange(24).reshape(2, 3, 4).astype(dtype)
    datum = caffe.io.array_to_datum(array, label=7)
    assert datum.label == 7 and bool(datum.data) == (dtype is np.uint8)
    assert np.array_equal(caffe.io.datum_to_array(datum), array)
    raw = parse_datum(datum.SerializeToString())
    assert (raw.channels, raw.height, raw.width, raw.label) == (2, 3, 4, 7)
    assert not caffe.io.array_to_datum(array).HasField("label")


def test_wrong_records() -> None:
    with pytest.raises(ValueError, match="three axes, the array 2"):
        caffe.io.array_to_datum(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="decode its data first"):
        caffe.io.datum_to_array(Datum(encoded=True, data=b"x"))
