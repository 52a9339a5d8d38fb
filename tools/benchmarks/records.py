"""Databases for benchmarks: what is in them does not matter, only how much."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caffe_dns.data.db import create_database
from caffe_dns.proto.caffe_pb2 import Datum


def make_database(path: Path, count: int, shape: tuple[int, int, int], classes: int = 10) -> None:
    """Raw images of random pixels in an LMDB; `shape` is channels, height, width."""
    generator = np.random.default_rng(0)
    channels, height, width = shape
    with create_database(str(path)) as writer:
        for number in range(count):
            datum = Datum(channels=channels, height=height, width=width, label=number % classes)
            datum.data = generator.bytes(channels * height * width)
            writer.put(b"%08d" % number, datum.SerializeToString())
            if number % 1000 == 999:
                writer.commit()
