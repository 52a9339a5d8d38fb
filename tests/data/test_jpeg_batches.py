"""Batches whose JPEGs a GPU decodes: the usual ones, to the last bit.

nvJPEG is a stand-in; `test_jpeg_units` has what needs a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from google.protobuf import text_format

from caffe_dns.data import jpeg_batch, jpeg_batches
from caffe_dns.data.batches import ImageBatches, Share
from caffe_dns.data.datum import DatumDecoder
from caffe_dns.data.db import create_database, open_database
from caffe_dns.data.image_mean import mean_to_blob
from caffe_dns.data.jpeg_batches import JpegBatches
from caffe_dns.data.sources import DatabaseSource
from caffe_dns.data.transform import RecordDraws, Transform
from caffe_dns.device import nvjpeg
from caffe_dns.device.nvjpeg import JpegUnits
from caffe_dns.errors import CaffeError
from caffe_dns.layers import Context
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, Datum, TransformationParameter
from tests.data.test_decoding_processes import write
from tests.layers.data_harness import data_layer

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BATCH = 10
CROP = "crop_size: 33 mirror: true mean_value: [104, 117, 123] scale: 0.5"
BAD_JPEG = 3


class Library:
    """Decodes JPEGs with a colour for each pixel, as nvJPEG would into memory of a GPU."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.refused: Callable[[bytes], int] = lambda jpeg: 0
        self.status = 0
        #: For how many each state is ready.
        self._counts: dict[int, int] = {}

    def nvjpegCreateEx(self, *_: object) -> int:
        return self.status

    def nvjpegJpegStateCreate(self, handle: Any, state: Any) -> int:
        state._obj.value = len(self._counts) + 1
        self._counts[state._obj.value] = 0
        return 0

    def nvjpegDecodeBatchedInitialize(self, handle: Any, state: Any, count: int, *_: object) -> int:
        self._counts[state.value] = count
        return 0

    def nvjpegDecodeBatched(
        self, handle: Any, state: Any, data: Any, sizes: Any, planes: Any, stream: Any
    ) -> int:
        def numbers(pointer: Any, count: int) -> list[int]:
            return list((ctypes.c_uint64 * count).from_address(pointer.value))

        count = self._counts[state.value]
        places = zip(numbers(data, count), numbers(sizes, count), strict=True)
        jpegs = [ctypes.string_at(*place) for place in places]
        if status := max(map(self.refused, jpegs)):
            return status
        targets = numbers(planes, 8 * count)
        for number, jpeg in enumerate(jpegs):
            *starts, _ = targets[8 * number :][:4]
            pitches = targets[8 * number + 4 :][:3]
            for plane, start, pitch in zip(planes_of(jpeg), starts, pitches, strict=True):
                for line, row in enumerate(plane):
                    ctypes.memmove(start + line * pitch, row.tobytes(), len(row))
        self.sizes.append(count)
        return 0


def planes_of(jpeg: bytes) -> np.ndarray:
    """Y, Cb and Cr, as libjpeg gives them without a conversion."""
    image = pytest.importorskip("PIL.Image").open(BytesIO(jpeg))
    assert {(rows, columns) for _, rows, columns, _ in image.layer} == {(1, 1)}
    image.draft("YCbCr", image.size)
    return np.asarray(image).transpose(2, 0, 1)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    stand_in = Library()
    stream = SimpleNamespace(synchronize=lambda: None, cuda_stream=0)
    monkeypatch.setattr(nvjpeg, "_load", lambda: stand_in)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority=0: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    units = JpegUnits(GPU, 2)
    monkeypatch.setattr(jpeg_batch, "units_of", lambda device: units)
    monkeypatch.setattr(jpeg_batches, "_FOUND_AHEAD", 1)  # so that all that it decodes is used
    monkeypatch.setattr("caffe_dns.data.batches.decoding_processes", lambda *_: 0)
    return stand_in


def jpeg(number: int, height: int = 40, width: int = 48) -> Datum:
    factor = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    return other(number, ".jpg", *factor, height=height, width=width)


def other(number: int, ending: str, *settings: int, height: int = 40, width: int = 48) -> Datum:
    """A record of the same image as `jpeg` has, stored otherwise."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    data = bytes(cv2.imencode(ending, pixels, settings)[1])
    return Datum(encoded=True, label=300 + number, data=data)


def readers(
    path: Path,
    text: str = CROP,
    device: torch.device = CPU,
    phase: int = TRAIN,
    backend: str = "lmdb",
    **colours: bool,
) -> tuple[JpegBatches, ImageBatches]:
    """What reads the database with a GPU's decoder, and without."""

    def settings() -> tuple[Any, ...]:
        source = DatabaseSource(open_database(str(path), backend, announce=False), **colours)
        transform = Transform(text_format.Parse(text, TransformationParameter()), phase)
        return source, transform, RecordDraws(3, "transform"), Share(), BATCH

    first = settings()
    jpegs = JpegBatches(DatumDecoder(**colours), device, *first)
    return jpegs, ImageBatches(*settings(), for_gpu=True)


def same_batches(
    path: Path, count: int, text: str = CROP, device: torch.device = CPU, **more: Any
) -> None:
    """Check that both give the same batches."""
    with_gpu, without = readers(path, text, device, **more)
    for _ in range(count):
        found, wanted = (reader.read() for reader in (with_gpu, without))
        for one, other in zip(found.tops(device), wanted.tops(device), strict=True):
            assert torch.equal(one, other)
    with_gpu.close()
    without.close()


def test_it_begins_with_batches_before_they_are_asked_for(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpeg_batches, "_FOUND_AHEAD", 3)
    records = [jpeg(number) for number in range(3 * BATCH)]
    records[2 * BATCH + 4].data = b"none"
    reader, usual = readers(write(tmp_path / "db", records))
    for ahead in (2, 1):
        found, wanted = (each.read().tops(CPU)[0] for each in (reader, usual))
        assert torch.equal(found, wanted)
        reader._found[ahead - 1].exception()
        assert library.sizes[:2] == [BATCH] * 2
    with pytest.raises(CaffeError, match=f"record {2 * BATCH + 4} "):
        reader.read().tops(CPU)
    reader.close()


@pytest.mark.parametrize(("most", "sizes"), [(9, [5, 5]), (4, [4, 4, 2]), (1, [1] * BATCH)])
def test_a_batch_in_parts(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch, most: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(nvjpeg, "_MOST_TOGETHER", most)
    write(tmp_path / "db", [jpeg(number) for number in range(2 * BATCH)])
    same_batches(tmp_path / "db", 2)
    assert sorted(library.sizes) == sorted(2 * sizes)


@pytest.mark.parametrize("phase", [TRAIN, TEST])
@pytest.mark.parametrize("text", ["", CROP, "crop_size: 40 scale: 0.25"])
def test_all_jpegs_are_left_to_it(tmp_path: Path, library: Library, text: str, phase: int) -> None:
    write(tmp_path / "db", [jpeg(number) for number in range(25)])
    same_batches(tmp_path / "db", 4, text, phase=phase)
    assert library.sizes == [BATCH] * 4


def test_of_several_sizes(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpeg_batch, "_MOST_AT_ONCE", 3 * 100 * 60 * 4)
    write(tmp_path / "db", [jpeg(n, 40 + 77 * (n % 3), 35 + n) for n in range(20)])
    same_batches(tmp_path / "db", 2)
    assert sum(library.sizes) == 20 and 1 < len(library.sizes) < 20


def test_with_a_mean_file(tmp_path: Path, library: Library) -> None:
    mean = np.random.default_rng(1).uniform(90, 150, (3, 40, 48)).astype(np.float32)
    (tmp_path / "mean").write_bytes(mean_to_blob(mean).SerializeToString())
    write(tmp_path / "db", [jpeg(number) for number in range(BATCH)])
    same_batches(tmp_path / "db", 1, f"crop_size: 32 mean_file: '{tmp_path / 'mean'}'")
    assert library.sizes == [BATCH]


@pytest.mark.parametrize("first", range(4))
def test_others_are_decoded_here(tmp_path: Path, library: Library, first: int) -> None:
    records = [
        other(0, ".png"),
        jpeg(1),
        other(2, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1, height=41),
        other(3, ".bmp"),
        *(jpeg(number) for number in range(4, BATCH)),
    ]
    records[5].data = records[5].data[:-900]  # cut short
    write(tmp_path / "db", records[first:] + records[:first])
    same_batches(tmp_path / "db", 1)
    assert library.sizes == ([BATCH - 4] if first == 1 else [])  # else all are decoded here


@pytest.mark.parametrize("backend", ["lmdb", "leveldb"])
@pytest.mark.parametrize("large", [False, True])
def test_what_is_beside_the_image(
    tmp_path: Path, library: Library, backend: str, large: bool
) -> None:
    labels = [0, 1, 127, 128, 999, 1 << 20, -1, 5, 6, 7]
    shape = (180, 200) if large else (40, 48)
    with create_database(str(tmp_path / "db"), backend) as writer:
        for number, label in enumerate(labels):
            datum = jpeg(number, *shape)
            datum.channels, datum.height, datum.width, datum.label = 3, *shape, label
            writer.put(b"%d" % number, datum.SerializeToString())
    same_batches(tmp_path / "db", 2, backend=backend)
    assert library.sizes == [BATCH] * 2


@pytest.mark.parametrize("field", ["label", "height", "encoded"])
def test_records_of_several_makes_are_decoded_here(
    tmp_path: Path, library: Library, field: str
) -> None:
    records = [jpeg(number) for number in range(BATCH)]
    for record in records:
        record.height = 40
    records[6].ClearField(field)
    if field == "encoded":
        pixels = np.random.default_rng(6).integers(0, 256, (3, 40, 48), np.uint8)
        records[6] = Datum(channels=3, height=40, width=48, data=pixels.tobytes(), label=6)
    same_batches(write(tmp_path / "db", records), 2)
    assert library.sizes == []


def test_colours_may_be_asked_for(tmp_path: Path, library: Library) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (40, 48), np.uint8)
    records = [jpeg(number) for number in range(BATCH)]
    records[3].data = bytes(cv2.imencode(".jpg", gray)[1])
    write(tmp_path / "db", records)
    same_batches(tmp_path / "db", 1, color=True)
    assert library.sizes == [BATCH - 1]


def test_what_it_refuses_is_decoded_here(tmp_path: Path, library: Library) -> None:
    records = [jpeg(number) for number in range(BATCH)]
    library.refused = lambda jpeg: BAD_JPEG if jpeg == records[4].data else 0
    write(tmp_path / "db", records)
    same_batches(tmp_path / "db", 2)
    assert library.sizes == [1] * 18


def test_it_keeps_no_others_from_it_but_those_of_its_part(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvjpeg, "_MOST_TOGETHER", 4)
    records = [jpeg(number) for number in range(BATCH)]
    library.refused = lambda jpeg: BAD_JPEG if jpeg == records[5].data else 0
    write(tmp_path / "db", records)
    same_batches(tmp_path / "db", 2)
    assert sorted(library.sizes) == sorted(2 * [4, 2, 1, 1, 1])


def test_raw_records_are_read_as_ever(tmp_path: Path, library: Library) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 3, 80, 90), np.uint8)
    datums = [Datum(channels=3, height=80, width=90, data=each.tobytes()) for each in pixels]
    for number, datum in enumerate(datums[5:]):  # those at the end are not found raw together
        datum.ClearField("data")
        datum.float_data.extend(pixels[number].ravel().tolist())
    write(tmp_path / "raw", datums[:5] * 2)
    same_batches(tmp_path / "raw", 2)
    write(tmp_path / "floats", datums[5:] * 2)
    same_batches(tmp_path / "floats", 1)
    assert library.sizes == []


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (jpeg(1, 20, 20), "crop_size 33 is larger than an image of 20x20"),
        (other(1, ".png"), None),
        (Datum(encoded=True, data=b"\xff\xd8 none \xff\xd9"), "an encoded image cannot be decoded"),
        (Datum(encoded=True, data=jpeg(1).data[:300] + b"\xff\xd9"), "cannot be decoded"),
        (Datum(encoded=True, data=jpeg(1).data[:-900] + b"\xff\xd9"), None),
    ],
)
def test_a_record_that_is_wrong_is_named(
    tmp_path: Path, library: Library, record: Datum, said: str | None
) -> None:
    records = [jpeg(number) for number in range(BATCH)]
    records[6] = record
    path = write(tmp_path / "db", records)
    if said is None:
        same_batches(path, 1)
        return
    reader, _ = readers(path)
    with pytest.raises(CaffeError, match=f"record 6 .*{said}"):
        reader.read().tops(CPU)


def test_memory_that_gives_out_is_no_damaged_image(tmp_path: Path, library: Library) -> None:
    library.refused = lambda jpeg: nvjpeg._NO_MEMORY
    write(tmp_path / "db", [jpeg(number) for number in range(BATCH)])
    reader, _ = readers(tmp_path / "db")
    with pytest.raises(CaffeError, match="no memory left"):
        reader.read().tops(CPU)


def text_of(path: Path) -> str:
    source = f"data_param {{ source: '{path}' backend: LMDB batch_size: 4 }}"
    return f"type: 'Data' {source} transform_param {{ crop_size: 33 }}"


def test_a_net_on_a_cpu_is_told(tmp_path: Path) -> None:
    write(tmp_path / "db", [jpeg(number) for number in range(4)])
    with (
        pytest.raises(CaffeError) as caught,
        data_layer(text_of(tmp_path / "db"), context=Context(decode_on_gpu=True)),
    ):
        pass
    assert "decode_on_gpu: this net is on a CPU" in str(caught.value)


def test_what_is_missing_is_told(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    library.status = 7
    with pytest.raises(CaffeError, match="no units that decode JPEGs") as caught:
        JpegUnits(GPU, 2)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setattr(nvjpeg, "_installed", lambda: iter(["no/such/libnvjpeg.so"]))
    monkeypatch.setattr(nvjpeg, "_NAMES", ())
    with pytest.raises(CaffeError, match="pip install nvidia-nvjpeg") as caught:
        JpegUnits(GPU, 2)
    assert "\n" not in str(caught.value)


def test_the_library_is_looked_for_in_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia" / "cu13" / "lib").mkdir(parents=True)
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise ImportError")
    (tmp_path / "torchvision.libs").mkdir()
    wanted = [
        "nvidia/cu13/lib/libnvjpeg.so.13",
        "torchvision/../torchvision.libs/libnvjpeg.1.so.13",
    ]
    for name in wanted:
        (tmp_path / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = [name for name in nvjpeg._installed() if name.startswith(str(tmp_path))]
    assert [Path(name).resolve() for name in found] == [(tmp_path / n).resolve() for n in wanted]
