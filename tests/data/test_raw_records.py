"""Raw Datums that are copied many at once: as one by one, and left alone where they differ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from caffe_dns.data.raw_records import find_raw
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import Datum

SHAPE = (2, 7, 9)
LABELS = [0, 127, 128, 999, -1, 2**31 - 1]


def datum_of(label: int) -> Datum:
    pixels = np.random.default_rng(label & 0xFFFF).integers(0, 256, SHAPE, np.uint8)
    datum = Datum(channels=SHAPE[0], height=SHAPE[1], width=SHAPE[2], label=label)
    datum.data = pixels.tobytes()
    return datum


def pixels_of(datum: Datum) -> np.ndarray:
    return np.frombuffer(datum.data, np.uint8).reshape(SHAPE)


@pytest.mark.parametrize("kind", [bytes, memoryview])
@pytest.mark.parametrize("encoded", [None, False])
def test_copies_crops(kind: Callable[[bytes], bytes | memoryview], encoded: bool | None) -> None:
    datums = [datum_of(label) for label in LABELS]
    if encoded is not None:
        for datum in datums[::2]:
            datum.encoded = encoded
    records = find_raw([kind(datum.SerializeToString()) for datum in datums])
    assert records is not None
    assert records.shape == SHAPE
    corners = np.array([[0, 0], [3, 4], [1, 2], [3, 0], [0, 4], [2, 3]])
    target = torch.zeros(len(LABELS), 2, 4, 5, dtype=torch.uint8)
    labels = torch.zeros(len(LABELS))
    for some in (slice(0, 4), slice(4, 6)):
        assert records.copy(corners, target, labels, some)
    assert labels.tolist() == torch.tensor(LABELS, dtype=torch.float32).tolist()
    for place, datum, (top, left) in zip(target, datums, corners, strict=True):
        expected = pixels_of(datum)[:, top : top + 4, left : left + 5]
        assert np.array_equal(place.numpy(), expected)


def edited(edit: Callable[[Datum], object]) -> bytes:
    datum = datum_of(5)
    edit(datum)
    return datum.SerializeToString()


WHOLE = datum_of(5).SerializeToString()


@pytest.mark.parametrize(
    "other",
    [
        edited(lambda datum: datum.ClearField("label")),
        edited(lambda datum: datum.float_data.append(1)),
        edited(lambda datum: setattr(datum, "encoded", True)),
        edited(lambda datum: setattr(datum, "height", 9)),
        edited(lambda datum: setattr(datum, "data", datum.data[:-1])),
        WHOLE + Datum(channels=0).SerializeToString(),
        WHOLE[: WHOLE.index(b"\x28\x05")],
        WHOLE[:60],
        WHOLE[:5],
        b"",
    ],
)
def test_leaves_records_that_differ_to_others(other: bytes) -> None:
    for values, alike in (([WHOLE, WHOLE], True), ([WHOLE, other], False)):
        records = find_raw(values)
        assert records is not None
        target = torch.zeros(2, *SHAPE, dtype=torch.uint8)
        corners = np.zeros((2, 2), np.int64)
        assert records.copy(corners, target, torch.zeros(2), slice(0, 2)) == alike


def test_leaves_encoded_images_and_floats_to_others() -> None:
    assert find_raw([Datum(encoded=True, data=b"x", label=1).SerializeToString()]) is None
    floats = Datum(channels=1, height=1, width=2, float_data=[1, 2], label=1)
    assert find_raw([floats.SerializeToString()]) is None


@pytest.mark.parametrize("broken", [WHOLE[:60], b"\xff", b"\x0b"])
def test_what_is_no_datum_is_told(broken: bytes) -> None:
    with pytest.raises(CaffeError, match="a record is not a Datum"):
        find_raw([broken])
