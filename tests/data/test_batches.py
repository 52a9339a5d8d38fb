"""Batches of images: shares of ranks, images of several kinds in one batch."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from caffe_dns.data.batches import _SHARED_WORK, ImageBatches, Share
from caffe_dns.data.db import open_database
from caffe_dns.data.image_batch import CroppedBatch
from caffe_dns.data.sources import DatabaseSource
from caffe_dns.data.transform import RecordDraws, Transform
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, Datum, TransformationParameter
from tests.data.test_decoding_processes import write


@pytest.fixture(autouse=True)
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is decoded here, however many cores there are, by threads, however small it is."""
    monkeypatch.setattr("caffe_dns.data.batches.decoding_processes", lambda *_: 0)
    monkeypatch.setattr("caffe_dns.data.batches._DECODING", _SHARED_WORK)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 4, 7])
def test_ranks_share_the_records(start: int, ranks: int) -> None:
    numbers = []
    for rank in range(ranks):
        batches = list(itertools.islice(Share(start, rank, ranks).batches(4), 3))
        own = np.concatenate(batches)
        assert set(own % ranks) == {rank}
        numbers += own.tolist()
    assert sorted(numbers) == list(range(start, start + 12 * ranks))


def random_image(shape: tuple[int, int, int], label: int, kind: str = "raw") -> Datum:
    channels, height, width = shape
    pixels = np.random.default_rng(label).integers(0, 256, shape, np.uint8)
    datum = Datum(channels=channels, height=height, width=width, label=label)
    if kind == "float":
        datum.float_data.extend(pixels.ravel().tolist())
    else:
        datum.data = pixels.tobytes()
    return datum


def batches_of(
    path: Path,
    datums: list[Datum],
    batch_size: int,
    crop_size: int = 0,
    mirror: bool = False,
    phase: int = TRAIN,
    at_once: int = 1,
) -> ImageBatches:
    write(path, datums)
    return ImageBatches(
        DatabaseSource(open_database(str(path))),
        Transform(TransformationParameter(crop_size=crop_size, mirror=mirror), phase),
        RecordDraws(1, "data"),
        Share(),
        batch_size,
        at_once,
        for_gpu=True,
    )


def values_of(datum: Datum) -> np.ndarray:
    values = np.frombuffer(datum.data, np.uint8) if datum.data else np.array(datum.float_data)
    return values.reshape(datum.channels, datum.height, datum.width)


def test_crops_images_of_several_sizes_into_one_batch(tmp_path: Path) -> None:
    datums = [random_image((2, 6 + n, 9 - n), label=n) for n in range(4)]
    reader = batches_of(tmp_path / "db", datums, 4, crop_size=5)
    batch = reader.read()
    reader.close()
    assert isinstance(batch, CroppedBatch)
    assert batch.labels.tolist() == [0, 1, 2, 3]
    assert batch.cuts is not None
    for pixels, datum, cut in zip(batch.pixels, datums, batch.cuts.tolist(), strict=True):
        top, left, _ = cut
        expected = values_of(datum)[:, top : top + 5, left : left + 5]
        assert np.array_equal(pixels.numpy(), expected)


def test_large_images_are_copied_by_several_threads(tmp_path: Path) -> None:
    datums = [random_image((3, 300, 400), label=n) for n in range(13)]
    reader = batches_of(tmp_path / "db", datums, 13)
    batch = reader.read()
    assert isinstance(batch, CroppedBatch)
    for pixels, datum in zip(batch.pixels.numpy(), datums, strict=True):
        assert np.array_equal(pixels, values_of(datum))
    reader.close()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("crop_size", [0, 200])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_large_images_come_out_together_as_one_by_one(
    tmp_path: Path,
    threads: int,
    crop_size: int,
    mirror: bool,
    phase: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("caffe_dns.data.workers.available_cores", lambda: threads)
    monkeypatch.setattr("caffe_dns.data.batches._SHARED_WORK", 1 << 18)
    datums = [random_image((3, 210, 220), label=300 * n) for n in range(11)]
    together, alone = (
        batches_of(tmp_path / name, datums, 8, crop_size, mirror, phase) for name in ("a", "b")
    )
    monkeypatch.setattr(alone._source, "find_raw", lambda items: None)
    for _ in range(4):
        made, expected = together.read(), alone.read()
        assert isinstance(made, CroppedBatch) and isinstance(expected, CroppedBatch)
        assert torch.equal(made.pixels, expected.pixels)
        assert torch.equal(made.labels, expected.labels)
        assert (made.cuts is None) == (expected.cuts is None)
        if made.cuts is not None and expected.cuts is not None:
            assert torch.equal(made.cuts, expected.cuts)
    together.close()
    alone.close()


def test_large_images_that_are_no_longer_in_the_file_are_told_of(tmp_path: Path) -> None:
    datums = [random_image((3, 300, 400), label=n) for n in range(13)]
    reader = batches_of(tmp_path / "db", datums, 13)
    reader._begin().finish()
    os.truncate(tmp_path / "db" / "data.mdb", 1 << 20)
    with pytest.raises(CaffeError, match=r"data\.mdb: has become shorter while it was read"):
        reader.read()
    reader.close()


def encoded_image(label: int) -> Datum:
    """A lossless one, so that its pixels are known."""
    pixels = np.random.default_rng(label).integers(0, 256, (8, 9, 3), np.uint8)
    return Datum(encoded=True, label=label, data=bytes(cv2.imencode(".png", pixels)[1]))


@pytest.mark.parametrize("threads", [1, 3])
def test_encoded_images_keep_their_order(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffe_dns.data.workers.available_cores", lambda: threads)
    datums = [encoded_image(n) for n in range(10)]
    reader = batches_of(tmp_path / "db", datums, 4)
    for start in (0, 4, 8, 2, 6, 0):
        batch = reader.read()
        assert isinstance(batch, CroppedBatch)
        labels = [(start + n) % 10 for n in range(4)]
        assert batch.labels.tolist() == labels
        for pixels, label in zip(batch.pixels.numpy(), labels, strict=True):
            expected = np.random.default_rng(label).integers(0, 256, (8, 9, 3), np.uint8)
            assert np.array_equal(pixels, expected.transpose(2, 0, 1))
    reader.close()


@pytest.mark.parametrize(("worth_it", "pieces"), [(4, 3), (8, 2), (9, 0)])
def test_threads_share_what_takes_long(
    tmp_path: Path, worth_it: int, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nine after the first in pieces that are worth a thread, or as a whole."""
    datums = [encoded_image(n) for n in range(10)]
    size = len(datums[0].SerializeToString())
    monkeypatch.setattr("caffe_dns.data.batches._DECODING", 1)
    monkeypatch.setattr("caffe_dns.data.batches._SHARED_WORK", worth_it * size)
    monkeypatch.setattr("caffe_dns.data.workers.available_cores", lambda: 5)
    reader = batches_of(tmp_path / "db", datums, 10)
    begun = reader._begin()
    assert len(begun.pieces) == pieces
    assert begun.finish().labels.tolist() == list(range(10))
    reader.close()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bad", [4, 6])
def test_an_encoded_image_that_is_none_is_told_of_in_its_turn(
    tmp_path: Path, threads: int, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffe_dns.data.workers.available_cores", lambda: threads)
    datums = [encoded_image(n) for n in range(8)]
    datums[bad] = Datum(encoded=True, data=b"x")
    reader = batches_of(tmp_path / "db", datums, 4)
    assert reader.read().labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(CaffeError, match="cannot be decoded"):
        reader.read()
    reader.close()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bad", [4, 7])
def test_of_batches_read_at_once_those_before_the_bad_one_come_first(
    tmp_path: Path, threads: int, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffe_dns.data.batches._SHARED_WORK", 1)
    monkeypatch.setattr("caffe_dns.data.workers.available_cores", lambda: threads)
    datums = [encoded_image(n) for n in range(8)]
    datums[bad] = Datum(encoded=True, data=b"x")
    reader = batches_of(tmp_path / "db", datums, 2, at_once=4)
    for first in range(0, bad // 2 * 2, 2):
        assert reader.read().labels.tolist() == [first, first + 1]
    with pytest.raises(CaffeError, match="cannot be decoded"):
        reader.read()
    reader.close()


@pytest.mark.parametrize("kind", ["raw", "float"])
def test_batches_read_at_once_may_differ_in_size(tmp_path: Path, kind: str) -> None:
    """Caffe's have the size of their first image, each (`data_layer.cpp`)."""
    datums = [random_image((2, 5 + n // 2 % 3, 7), n, kind) for n in range(12)]
    reader = batches_of(tmp_path / "db", datums, 2, at_once=3)
    for first in (0, 2, 4, 6, 8, 10, 0):
        batch = reader.read()
        assert batch.labels.tolist() == [first, first + 1]
        images = batch.tops(torch.device("cpu"))[0].numpy()
        for image, datum in zip(images, datums[first:], strict=False):
            assert np.array_equal(image, values_of(datum))
    reader.close()


@pytest.mark.parametrize("crop_size", [0, 3])
def test_small_images_that_are_alike_come_out_as_others_do(tmp_path: Path, crop_size: int) -> None:
    datums = [random_image((1, 4, 5), label=n) for n in range(5)]
    alike = batches_of(tmp_path / "alike", datums, 5, crop_size, True).read()
    datums[4].label = 300  # takes one more byte
    others = batches_of(tmp_path / "others", datums, 5, crop_size, True).read()
    device = torch.device("cpu")
    assert torch.equal(alike.tops(device)[0], others.tops(device)[0])
    assert alike.labels.tolist() == [0, 1, 2, 3, 4]
    assert others.labels.tolist() == [0, 1, 2, 3, 300]


def test_float_data_stay_floats(tmp_path: Path) -> None:
    datums = [random_image((2, 3, 4), label=n, kind="float") for n in range(2)]
    datums[0].float_data[0] = 0.125
    batch = batches_of(tmp_path / "db", datums, 2).read()
    assert isinstance(batch, CroppedBatch)
    assert batch.pixels.dtype == torch.float32
    assert np.array_equal(batch.pixels.numpy(), np.stack([values_of(d) for d in datums]))


@pytest.mark.parametrize("kind", ["raw", "png"])
def test_large_images_behind_a_small_one_are_in_memory_one_by_one(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffe_dns.data.batches.reading_threads", lambda for_gpu: 1)
    datums = [random_image((3, 16, 16), 0)]
    pixels = np.zeros((1500, 1000, 3), np.uint8)
    if kind == "png":
        for image in (pixels[:16, :16], pixels):
            encoded = cv2.imencode(".png", image)[1].tobytes()
            datums.append(Datum(data=encoded, encoded=True, label=len(datums) - 1))
        datums = datums[1:]
    else:
        raw = pixels.tobytes()
        datums.append(Datum(channels=3, height=1500, width=1000, data=raw, label=1))
    batches = batches_of(tmp_path / "db", [datums[0], *datums[1:] * 7], 8, crop_size=16)
    tracemalloc.start()
    batch = batches.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    batches.close()
    assert batch.labels.tolist() == [0, *[1] * 7]
    assert pixels.size < peak < 4 * pixels.size


@pytest.mark.parametrize(
    ("datums", "message"),
    [
        (
            [random_image((2, 3, 4), 0), random_image((2, 4, 3), 1)],
            "images of 2x4x3 and 2x3x4 .* in one batch; resize them, or give a crop_size",
        ),
        (
            [random_image((2, 3, 4), 0), random_image((2, 3, 4), 1, "float")],
            "records with data and records with float_data in one batch",
        ),
        ([random_image((2, 3, 4), 0), Datum(encoded=True, data=b"x")], "cannot be decoded"),
    ],
)
def test_refuses_images_that_do_not_belong_together(
    tmp_path: Path, datums: list[Datum], message: str
) -> None:
    reader = batches_of(tmp_path / "db", datums, 2)
    with pytest.raises(CaffeError, match=message):
        reader.read()
    reader.close()


@pytest.mark.parametrize("for_gpu", [False, True])
def test_a_bad_record_is_named(tmp_path: Path, for_gpu: bool) -> None:
    good, bad = random_image((3, 4, 5), 1), random_image((3, 4, 5), 2)
    bad.data = bad.data[:-1]
    path = write(tmp_path / "db", [good, good, bad])

    def message(skip: int) -> str:
        reader = ImageBatches(
            DatabaseSource(open_database(str(path)), skip=skip),
            Transform(TransformationParameter(), TRAIN),
            RecordDraws(1, "data"),
            Share(),
            3,
            for_gpu=for_gpu,
        )
        with pytest.raises(CaffeError) as caught:
            reader.read()
        reader.close()
        return str(caught.value)

    wrong = "a record of 3x4x5 (channels, height, width) holds 59 values"
    assert message(0) == f"{path}: record 2 (key '0002'): {wrong}"
    assert message(2) == f"{path}: record 2 (key '0002'): {wrong}"


def test_gray_among_colours_is_named_with_what_would_help(tmp_path: Path) -> None:
    datums = [random_image((3, 4, 5), 1), random_image((1, 4, 5), 2)]
    with pytest.raises(CaffeError) as caught:
        batches_of(tmp_path / "db", datums, 2).read()
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/db: record 1 (key '0001'): images of 1x4x5 and 3x4x5 ")
    assert message.endswith("of pixels, make the database anew, with -gray or without")
