"""Raw Datums that are copied many at once: as one by one, and left alone where they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns.data.datum import SMALL
from caffe_dns.data.raw_records import find_raw
from caffe_dns.data.stored import StoredFile, StoredValue, Value
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


def stored(folder: Path, values: Sequence[bytes]) -> list[StoredValue]:
    """The values in a file, last to first."""
    path = folder / "values"
    path.write_bytes(b"".join(reversed(values)))
    file, end = StoredFile(str(path)), path.stat().st_size
    found = []
    for value in values:
        end -= len(value)
        found.append(StoredValue(file, end, len(value)))
    return found


def in_memory(_folder: Path, values: Sequence[bytes]) -> list[memoryview]:
    return [memoryview(value) for value in values]


@pytest.mark.parametrize("keep", [stored, in_memory])
@pytest.mark.parametrize("encoded", [None, False])
def test_copies_crops(
    tmp_path: Path,
    keep: Callable[[Path, Sequence[bytes]], Sequence[Value]],
    encoded: bool | None,
) -> None:
    datums = [datum_of(label) for label in LABELS]
    if encoded is not None:
        for datum in datums[::2]:
            datum.encoded = encoded
    values = [datum.SerializeToString() for datum in datums]
    records = find_raw(keep(tmp_path, values))
    assert records is not None
    assert records.shape == SHAPE
    corners = np.array([[0, 0], [3, 4], [1, 2], [3, 0], [0, 4], [2, 3]])
    target = torch.zeros(len(LABELS), 2, 4, 5, dtype=torch.uint8)
    copy = records.copying(corners, target)
    for some in (range(4), range(4, 6)):
        copy(some)
    assert records.labels == LABELS
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
        WHOLE[:-1],
        WHOLE[:-1] + b"\x85",
        WHOLE[:60],
        WHOLE[:5],
        b"",
    ],
)
def test_leaves_records_that_differ_to_others(tmp_path: Path, other: bytes) -> None:
    assert find_raw(stored(tmp_path, [WHOLE, WHOLE])) is not None
    assert find_raw(stored(tmp_path, [WHOLE, other])) is None


def test_finds_records_of_several_files_and_in_memory(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (one,), (other,) = stored(tmp_path, [WHOLE]), stored(tmp_path / "other", [WHOLE])
    target = torch.zeros(3, *SHAPE, dtype=torch.uint8)
    records = find_raw([one, WHOLE, other])
    assert records is not None
    records.copying(np.zeros((3, 2), np.int64), target)(range(3))
    for place in target:
        assert np.array_equal(place.numpy(), pixels_of(datum_of(5)))


def test_leaves_tiny_records_in_memory_to_others() -> None:
    """Whose label would be looked for before the first."""
    tiny = [Datum(channels=1, height=1, width=1, data=b"x", label=label) for label in (1, -1)]
    tiny[1].encoded = False
    assert find_raw([datum.SerializeToString() for datum in tiny]) is None
    (records,) = (find_raw([datum.SerializeToString()]) for datum in tiny[1:])
    assert records is not None
    assert records.labels == [-1]


def test_leaves_large_records_that_are_in_memory_to_others(tmp_path: Path) -> None:
    datum = Datum(channels=1, height=SMALL, width=1, data=bytes(SMALL), label=1)
    values = [datum.SerializeToString()]
    assert find_raw(stored(tmp_path, values)) is not None
    assert find_raw(values) is None


@pytest.mark.parametrize(
    "datum",
    [
        Datum(encoded=True, data=b"x", label=1),
        Datum(channels=1, height=1, width=2, float_data=[1, 2], label=1),
    ],
)
def test_leaves_encoded_images_and_floats_to_others(tmp_path: Path, datum: Datum) -> None:
    assert find_raw(stored(tmp_path, [datum.SerializeToString()])) is None


@pytest.mark.parametrize("broken", [WHOLE[:60], b"\xff", b"\x0b"])
def test_what_is_no_datum_is_told(tmp_path: Path, broken: bytes) -> None:
    with pytest.raises(CaffeError, match="a record is not a Datum"):
        find_raw(stored(tmp_path, [broken]))
