#!/usr/bin/env python3
"""How fast small records are read from an LMDB, beside the lmdb package on the same files.

    python tools/benchmarks/small_records.py [--database FOLDER] [--records N] [--rounds N]

Without --database, one of MNIST's size is made: 28x28 pixels of noise, with a label. Read are all
records for their mean; and the first epoch of batches of 64, as they are and cropped at random, up
to the tensor that a net gets: with our reader, and the same on top of the package's cursor.
They read in turn. Printed are thousands of records for each second of the processor, medians of the
rounds, and medians of the ratios within each round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import lmdb
import torch

from caffe_dns import log
from caffe_dns.data.batches import ImageBatches, Share
from caffe_dns.data.database import Cursor, Database
from caffe_dns.data.db import open_database
from caffe_dns.data.image_mean import image_mean
from caffe_dns.data.sources import DatabaseSource
from caffe_dns.data.transform import RecordDraws, Transform
from caffe_dns.proto.caffe_pb2 import TRAIN, TransformationParameter
from tools.benchmarks.records import make_database

BATCH, SIZE, CROP = 64, 28, 24


class PackageDatabase(Database):
    """An LMDB as the lmdb package reads it: from a map of the file, which C believes."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._environment = lmdb.open(path, readonly=True, lock=False, readahead=False)
        self._transaction = self._environment.begin(buffers=True)

    def cursor(self) -> Cursor:
        return PackageCursor(self._transaction.cursor())

    def entries(self) -> int:
        return int(self._environment.stat()["entries"])

    def close(self) -> None:
        self._transaction.abort()
        self._environment.close()


class PackageCursor(Cursor):
    """The package's cursor."""

    def __init__(self, cursor: lmdb.Cursor) -> None:
        self.first, self.next = cursor.first, cursor.next  # type: ignore[method-assign]
        self.key, self.value = cursor.key, cursor.value  # type: ignore[method-assign]

    def first(self) -> bool:
        raise NotImplementedError

    next = key = value = first  # type: ignore[assignment]


def open_ours(path: str) -> Database:
    return open_database(path, announce=False)


def mean(database: Database) -> int:
    """The mean image, as `dns compute_image_mean` computes it."""
    image_mean(database, lambda done: None)
    return database.entries() or 0


def batches(crop: int) -> Callable[[Database], int]:
    """What reads an epoch of batches, cropped at random to `crop` if that is not 0."""

    def read(database: Database) -> int:
        entries = database.entries()
        assert entries is not None
        param = TransformationParameter(crop_size=crop, scale=0.00390625)
        draws = RecordDraws(0, "transform/data")
        source = DatabaseSource(database)
        reader = ImageBatches(source, Transform(param, TRAIN), draws, Share(), BATCH, for_gpu=False)
        cpu = torch.device("cpu")
        for _ in range(entries // BATCH):
            reader.read().tops(cpu)
        return entries // BATCH * BATCH

    return read


WORK: dict[str, Callable[[Database], int]] = {
    "mean image of all": mean,
    f"batches of {BATCH}": batches(0),
    f"batches of {BATCH}, crop {CROP} at random": batches(CROP),
}


def rate(open_it: Callable[[str], Database], path: str, work: Callable[[Database], int]) -> float:
    """Records for each second of the processor."""
    with open_it(path) as database:
        start = time.process_time()
        count = work(database)
        return count / (time.process_time() - start)


def report(path: str, rounds: int) -> None:
    print(f"{'thousand records/s':36}{'ours':>8}{'package':>9}{'ratio':>7}")
    for title, work in WORK.items():
        rate(open_ours, path, work)
        runs = [
            (rate(open_ours, path, work), rate(PackageDatabase, path, work)) for _ in range(rounds)
        ]
        ours, package = (statistics.median(each) / 1000 for each in zip(*runs, strict=True))
        ratio = statistics.median(ours / package for ours, package in runs)
        print(f"  {title:34}{ours:8.0f}{package:9.0f}{ratio:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", default="")
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    log.set_quiet(True)
    with tempfile.TemporaryDirectory() as folder:
        path = options.database or f"{folder}/db"
        if not options.database:
            make_database(Path(path), options.records, (1, SIZE, SIZE))
        report(path, options.rounds)


if __name__ == "__main__":
    main()
