"""Records that are kept in memory: the same images, labels and log lines as from the database."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_dns.data import kept_records
from caffe_dns.data.batches import Share
from caffe_dns.data.datum import Image, IntArray
from caffe_dns.data.db import create_database, open_database
from caffe_dns.data.sources import DatabaseSource
from caffe_dns.proto.caffe_pb2 import Datum
from tests.data.test_sources import RESTART

COUNT = 11


def write(path: Path, backend: str, shapes: list[tuple[int, int, int]]) -> str:
    """A database of random images of these shapes, in turn."""
    generator = np.random.default_rng(1)
    with create_database(str(path), backend) as writer:
        for number in range(COUNT):
            channels, height, width = shapes[number % len(shapes)]
            datum = Datum(channels=channels, height=height, width=width, label=number)
            datum.data = generator.bytes(channels * height * width)
            writer.put(b"%04d" % number, datum.SerializeToString())
    return str(path)


def read(source: DatabaseSource, records: IntArray, remember: bool) -> tuple[Image, Image, bool]:
    """Images and labels, and whether they were in memory."""
    known = source.recall(records) if remember else None
    if known is not None:
        return *known, True
    items = source.fetch_all(records.tolist())
    alike = source.decode_alike(items, records)
    assert alike is not None
    return *alike, False


@pytest.mark.parametrize("backend", ["lmdb", "leveldb"])
@pytest.mark.parametrize("size", [1, 3, 5, 25])
@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 2), (0, 3)])
@pytest.mark.parametrize("skip", [0, 4])
def test_same_as_from_the_database(
    tmp_path: Path,
    backend: str,
    size: int,
    rank: int,
    ranks: int,
    skip: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "db", backend, [(2, 3, 4)])
    sources = [
        DatabaseSource(open_database(path, backend, announce=False), skip=skip) for _ in range(2)
    ]
    share = Share(5, rank, ranks).batches(size)
    remembered = []
    for _ in range(max(8, 80 // size)):
        records = next(share)
        results = []
        for source, remember in zip(sources, (True, False), strict=True):
            *arrays, kept = read(source, records, remember)
            results.append((*arrays, capfd.readouterr().err.count(RESTART)))
            remembered.append(kept)
        for found, expected in zip(*results, strict=True):
            np.testing.assert_array_equal(found, expected)
    assert remembered[-2:] == [True, False]
    for source in sources:
        source.close()


@pytest.mark.parametrize("reason", ["shapes", "size"])
def test_what_is_not_kept(tmp_path: Path, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(1, 2, 3), (1, 3, 2)] if reason == "shapes" else [(1, 2, 3)]
    if reason == "size":
        monkeypatch.setattr(kept_records, "MOST_BYTES", 6 * COUNT - 1)
    source = DatabaseSource(open_database(write(tmp_path / "db", "lmdb", shapes), "lmdb"))
    for number in range(3 * COUNT):
        image, label, kept = read(source, np.array([number]), remember=True)
        assert image.shape == (1, *shapes[number % COUNT % len(shapes)])
        assert label.tolist() == [number % COUNT]
        assert not kept
    source.close()
