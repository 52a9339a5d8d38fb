#!/usr/bin/env python3
"""How fast the Data layer opens large databases, and reads raw and JPEG images.

    python tools/benchmarks/data_rate.py [--records N] [--images N] [--rounds N] [--seconds S]
                                         [--cores N ...] [--kinds raw JPEG]

Without --cores, all reading is done on one core and on all. Where there is a GPU, the layer on it
reads as well, with finished batches in its memory as the end; and JPEGs once more, decoded by the
GPU, where torchvision is there.

Databases are made in a temporary folder. Each contestant is a process of its own, bound to its
cores; they read in turn, round after round, while the others stand still, so that all see the same
machine. The loops by hand do on one core what cannot be left out: fetch, decode, crop. Printed are
medians of the rounds; ratios are medians of the ratios within each round. Where others use the
machine as well, the processor's time for each image says more than images per second.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2
import lmdb
import numpy as np
import torch

from caffe_dns import log
from caffe_dns.data.batches import ImageBatches, Share
from caffe_dns.data.datum import parse_datum
from caffe_dns.data.db import create_database, open_database
from caffe_dns.data.image_mean import mean_to_blob
from caffe_dns.data.sources import DatabaseSource
from caffe_dns.data.transform import RecordDraws, Transform
from caffe_dns.layers import Context
from caffe_dns.layers.data import Data
from caffe_dns.proto.caffe_pb2 import TRAIN, DataParameter, Datum, LayerParameter

BATCH, SIZE, CROP = 256, 256, 227
KINDS = ["raw", "JPEG"]
#: Records in the database that a large one is compared with.
FEW = 1000
#: Batches that do not count at the beginning of a turn: some were read ahead.
READ_AHEAD = 6
Step = Callable[[], object]


# Databases --------------------------------------------------------------------------------------


def make_tiny(path: Path, count: int) -> None:
    """A database of `count` records of one pixel."""
    with create_database(str(path)) as writer:
        for number in range(count):
            datum = Datum(channels=1, height=1, width=1, data=b"x", label=number % 100)
            writer.put(b"%08d" % number, datum.SerializeToString())
            if number % 10000 == 0:
                writer.commit()


def make_images(path: Path, count: int, *, encoded: bool) -> None:
    """A database of `count` smooth colour images with some noise, raw or as JPEG."""
    generator = np.random.default_rng(0)
    with create_database(str(path)) as writer:
        for number in range(count):
            coarse = generator.integers(0, 256, (16, 16, 3), np.uint8)
            smooth = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
            noisy = smooth + generator.normal(0, 6, smooth.shape)
            image = np.clip(noisy, 0, 255).astype(np.uint8)
            datum = Datum(label=number % 1000, encoded=encoded)
            if encoded:
                datum.data = bytes(cv2.imencode(".jpg", image)[1])
            else:
                datum.channels, datum.height, datum.width = 3, SIZE, SIZE
                datum.data = image.transpose(2, 0, 1).tobytes()
            writer.put(b"%08d" % number, datum.SerializeToString())
            writer.commit()


def make_mean(path: Path) -> None:
    mean = np.random.default_rng(1).uniform(100, 150, (3, SIZE, SIZE)).astype(np.float32)
    path.write_bytes(mean_to_blob(mean).SerializeToString())


# Opening ----------------------------------------------------------------------------------------


def first_batch(path: Path, record: int) -> float:
    """Seconds from a layer's definition to its batch of 64 that begins at this record."""
    start = time.perf_counter()
    layer = Data(definition(path, 64), Context())
    layer.setup([])
    layer.seek(record)
    layer()
    seconds = time.perf_counter() - start
    layer.close()
    return seconds


def report_opening(folder: Path, records: int, rounds: int) -> None:
    make_tiny(folder / "few", FEW)
    make_tiny(folder / "many", records)
    starts = {
        f"{FEW:,} records": (folder / "few", 0),
        f"{records:,} records": (folder / "many", 0),
        f"{records:,} records, resumed at the last one": (folder / "many", records - 1),
    }
    times = [{title: first_batch(*start) for title, start in starts.items()} for _ in range(rounds)]
    print(f"{'Opening a database, up to the first batch of 64':54}{'ms':>9}{'ratio':>9}")
    for title in starts:
        seconds = statistics.median(run[title] for run in times)
        ratio = statistics.median(run[title] / run[next(iter(starts))] for run in times)
        print(f"  {title:52}{1000 * seconds:9.1f}{ratio:9.2f}")


# Reading ----------------------------------------------------------------------------------------


def definition(path: Path, batch: int) -> LayerParameter:
    param = LayerParameter(name="data", type="Data", top=["data", "label"], phase=TRAIN)
    param.data_param.source = str(path)
    param.data_param.backend = DataParameter.LMDB
    param.data_param.batch_size = batch
    return param


def cropping(path: Path) -> LayerParameter:
    """With a crop at random, mirror and mean."""
    param = definition(path, BATCH)
    param.transform_param.crop_size = CROP
    param.transform_param.mirror = True
    param.transform_param.mean_file = str(path.parent / "mean.binaryproto")
    return param


def by_hand(path: Path) -> Step:
    """Fetch, decode if need be, crop anywhere, copy into a batch."""
    environment = lmdb.open(str(path), readonly=True, lock=False)
    cursor = environment.begin(buffers=True).cursor()
    generator = np.random.default_rng(0)

    def step() -> None:
        pixels = np.empty((BATCH, 3, CROP, CROP), np.uint8)
        corners = generator.integers(SIZE - CROP + 1, size=(BATCH, 2)).tolist()
        for index, (top, left) in enumerate(corners):
            if not cursor.next():
                cursor.first()
            datum = parse_datum(cursor.value())
            data = np.frombuffer(datum.data, np.uint8)
            if datum.encoded:
                decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
                assert decoded is not None
                image = decoded.transpose(2, 0, 1)
            else:
                image = data.reshape(3, SIZE, SIZE)
            pixels[index] = image[:, top : top + CROP, left : left + CROP]

    return step


def bytes_only(path: Path) -> Step:
    """Batches of cropped bytes: what is read for a GPU, which does the rest."""
    source = DatabaseSource(open_database(str(path)))
    transform = Transform(cropping(path).transform_param, TRAIN)
    draws = RecordDraws(0, "transform/data")
    return ImageBatches(source, transform, draws, Share(), BATCH, for_gpu=True).read


def whole_layer(path: Path) -> Step:
    """The Data layer on the CPU."""
    layer = Data(cropping(path), Context())
    layer.setup([])
    return layer


def layer_on_gpu(path: Path, *, decode_on_gpu: bool = False) -> Step:
    """The Data layer on a GPU, each batch waited for."""
    context = Context(device=torch.device("cuda", 0), decode_on_gpu=decode_on_gpu)
    layer = Data(cropping(path), context)
    layer.setup([])

    def step() -> None:
        layer()
        torch.cuda.current_stream().synchronize()

    return step


READERS: dict[str, Callable[[Path], Step]] = {
    "by hand": by_hand,
    "bytes for a GPU": bytes_only,
    "Data layer on the CPU": whole_layer,
}
if torch.cuda.is_available():
    READERS["Data layer on the GPU"] = layer_on_gpu
#: Title -> what reads, and from which database.
CONTESTANTS: dict[str, tuple[Callable[[Path], Step], str]] = {
    f"{kind}, {title}": (reader, kind.lower())
    for kind in KINDS
    for title, reader in READERS.items()
}
if torch.cuda.is_available() and find_spec("torchvision"):
    CONTESTANTS["JPEG, decoded by the GPU"] = partial(layer_on_gpu, decode_on_gpu=True), "jpeg"
Key = tuple[str, int]


def serve(folder: Path, title: str, cores: list[int], pipe: Connection) -> None:
    """Read for as many seconds as the pipe says, again and again.

    Answers with images per second, the processor's seconds for each, and the bytes of memory of
    this process.
    """
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    log.set_quiet(True)
    reader, database = CONTESTANTS[title]
    step = reader(folder / database)
    while seconds := pipe.recv():
        for _ in range(READ_AHEAD):
            step()
        start, busy = time.perf_counter(), time.process_time()
        now = start
        batches = 0
        while now < start + seconds:
            step()
            batches += 1
            now = time.perf_counter()
        images = batches * BATCH
        busy = time.process_time() - busy
        pipe.send((images / (now - start), busy / images, own_memory()))


def own_memory() -> int:
    """Bytes in memory, less the pages of files, which the kernel can take back at any time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


class Contestant:
    """A process that reads when it is its turn, and stands still otherwise."""

    def __init__(self, folder: Path, title: str, cores: list[int]) -> None:
        self._pipe, far_end = Pipe()
        context = get_context("spawn")
        arguments = (folder, title, cores, far_end)
        self._process: BaseProcess = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        #: After each turn.
        self.memory: list[int] = []
        self.busy: list[float] = []

    def read(self, seconds: float) -> float:
        """Images per second."""
        self._signal(signal.SIGCONT)
        self._pipe.send(seconds)
        rate: float
        rate, busy, memory = self._pipe.recv()
        self._signal(signal.SIGSTOP)
        self.memory.append(memory)
        self.busy.append(busy)
        return rate

    def end(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.join()

    def _signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def report_reading(
    folder: Path, kinds: list[str], counts: list[int], rounds: int, seconds: float
) -> None:
    cores = sorted(os.sched_getaffinity(0))
    contestants = {
        (title, count): Contestant(folder, title, cores[:count])
        for title in CONTESTANTS
        if title.split(",")[0] in kinds
        for count in (counts[:1] if title.endswith("by hand") else counts)
    }
    for contestant in contestants.values():
        contestant.read(seconds / 4)
    runs: list[dict[Key, float]] = [
        {key: contestant.read(seconds) for key, contestant in contestants.items()}
        for _ in range(rounds)
    ]
    for contestant in contestants.values():
        contestant.end()
    print(f"\nReading {SIZE}x{SIZE}x3, crop {CROP}, mirror, mean; batch {BATCH}")
    print(
        f"{'':29}{'cores':>7}{'images/s':>10}{'to fewest':>11}{'to by hand':>12}"
        f"{'CPU us each':>13}{'MiB more':>10}"
    )
    for (title, count), contestant in contestants.items():
        rate = statistics.median(run[title, count] for run in runs)
        scaling = statistics.median(run[title, count] / run[title, counts[0]] for run in runs)
        hand = (f"{title.split(',')[0]}, by hand", counts[0])
        ratio = statistics.median(run[title, count] / run[hand] for run in runs)
        growth = (contestant.memory[-1] - contestant.memory[0]) / (1 << 20)
        busy = 1e6 * statistics.median(contestant.busy)
        row = f"  {title:27}{count:7}{rate:10.0f}{scaling:11.2f}{ratio:12.2f}{busy:13.0f}"
        print(f"{row}{growth:10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=1_300_000, help="in the large database")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    everything = sorted({1, len(os.sched_getaffinity(0))})
    parser.add_argument(
        "--cores", type=int, nargs="+", default=everything, help="the first: for ratios"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    log.set_quiet(True)
    print(
        f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, OpenCV {cv2.__version__}, "
        f"lmdb {lmdb.__version__}; medians of {options.rounds} rounds"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in options.kinds:
            make_images(folder / kind.lower(), options.images, encoded=kind == "JPEG")
        make_mean(folder / "mean.binaryproto")
        report_opening(folder, options.records, options.rounds)
        report_reading(folder, options.kinds, options.cores, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
