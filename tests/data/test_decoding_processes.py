"""Batches whose records other processes decode: the same as without, whatever becomes of these."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from google.protobuf.message import Message

from caffe_dns.data import batches, decoding_processes
from caffe_dns.data.batches import ImageBatches, Share
from caffe_dns.data.db import create_database, open_database
from caffe_dns.data.decoding_processes import DecodingProcesses
from caffe_dns.data.image_batch import CroppedBatch, ImageBatch
from caffe_dns.data.sources import DatabaseSource
from caffe_dns.data.transform import RecordDraws, Transform
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import TRAIN, Datum, TransformationParameter
from tests.nets import recorded_log
from tests.processes import PATIENCE

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="processes share memory as Linux lets them"
)
BATCH = 12


def jpeg(number: int, height: int = 40, width: int = 48) -> Datum:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    return Datum(encoded=True, label=300 + number, data=bytes(cv2.imencode(".jpg", pixels)[1]))


def write(path: Path, records: Sequence[Message]) -> Path:
    """A new database of these records, whose keys are their numbers."""
    with create_database(str(path)) as writer:
        for number, record in enumerate(records):
            writer.put(b"%04d" % number, record.SerializeToString())
    return path


def started(count: int, memory: int) -> DecodingProcesses:
    """Processes that have started."""
    processes = DecodingProcesses(count, memory)
    for process in processes._all:
        assert process._pipe.poll(PATIENCE)
    return processes


def reader_of(
    path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, crop_size: int = 0
) -> ImageBatches:
    """With a crop at random and mirror where there is a `crop_size`."""
    monkeypatch.setattr(batches, "decoding_processes", lambda *_: processes)
    monkeypatch.setattr(batches, "_DECODING", batches._SHARED_WORK)  # threads for small ones, too
    param = TransformationParameter(crop_size=crop_size, mirror=crop_size > 0)
    source = DatabaseSource(open_database(str(path)))
    draws = RecordDraws(1, "data")
    return ImageBatches(source, Transform(param, TRAIN), draws, Share(), BATCH, for_gpu=True)


def same(made: ImageBatch, expected: ImageBatch) -> bool:
    assert isinstance(made, CroppedBatch) and isinstance(expected, CroppedBatch)
    assert made.cuts is not None and expected.cuts is not None
    return (
        torch.equal(made.pixels, expected.pixels)
        and torch.equal(made.labels, expected.labels)
        and torch.equal(made.cuts, expected.cuts)
    )


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records each task had that a process has done."""
    tasks = []
    run = decoding_processes._Process.run

    def counted(self: Any, task: Any, crops: Any) -> Any:
        notes = run(self, task, crops)
        tasks.append(0 if notes is None else len(notes))
        return notes

    monkeypatch.setattr(decoding_processes._Process, "run", counted)
    return tasks


@pytest.fixture
def said() -> Iterator[list[str]]:
    with recorded_log() as lines:
        yield lines


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("sizes", ["one", "several"])
def test_the_same_batches_as_without_processes(
    tmp_path: Path, sizes: str, monkeypatch: pytest.MonkeyPatch, done: list[int]
) -> None:
    # Small records are in memory when they are sent, large ones in the file.
    extents = [(40, 48)] if sizes == "one" else [(140, 148), (133, 164), (64, 32)]
    path = write(tmp_path / "db", [jpeg(n, *extents[n % len(extents)]) for n in range(30)])
    made = reader_of(path, monkeypatch, 2, crop_size=31)
    expected = reader_of(path, monkeypatch, 0, crop_size=31)
    for _ in range(5):
        assert same(made.read(), expected.read())
    assert sum(done) >= 5 * (BATCH - 1)  # all but the first of each, which says how large they are
    made.close()
    expected.close()


def test_a_first_image_does_not_say_how_many_are_decoded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[int]
) -> None:
    monkeypatch.setattr(batches, "DecodingProcesses", started)
    monkeypatch.setattr(batches, "_BYTES_TOGETHER", 3 * 400 * 480)
    monkeypatch.setattr(batches, "_MOST_TOGETHER", 8)
    path = write(tmp_path / "db", [jpeg(0, 400, 480), *(jpeg(n) for n in range(1, 2 * BATCH))])
    reader = reader_of(path, monkeypatch, 1, crop_size=31)
    reader.read()
    assert done == [1] * (BATCH - 1)
    done.clear()
    reader.read()
    assert done == [6, BATCH - 7]  # as many each, and 8 at most
    reader.close()


@pytest.fixture(scope="module")
def ready() -> Iterator[DecodingProcesses]:
    processes = started(2, 1 << 20)
    yield processes
    processes.close()


@pytest.fixture
def shared(ready: DecodingProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those are used by all readers, and none ends them."""
    monkeypatch.setattr(batches, "DecodingProcesses", lambda count, memory: ready)
    monkeypatch.setattr(ready, "close", lambda: None)


@pytest.mark.usefixtures("shared")
def test_what_is_unusual_is_done_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[int], said: list[str]
) -> None:
    monkeypatch.setattr(batches, "_MOST_TOGETHER", 8)
    datums = [jpeg(n) for n in range(2 * BATCH)]
    datums[5].data = datums[5].data[:-200]
    datums[-2].data = b"x"
    reader = reader_of(write(tmp_path / "db", datums), monkeypatch, 1, crop_size=31)
    assert reader.read().labels.tolist() == list(range(300, 300 + BATCH))
    assert 0 in done and max(done) > 0
    assert sum("cut short" in line for line in said) == 1
    with pytest.raises(CaffeError, match=f"record {2 * BATCH - 2} .key '00{2 * BATCH - 2}'.*decod"):
        reader.read()
    reader.close()


@pytest.mark.usefixtures("shared")
def test_another_file_by_the_name_of_the_database_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[int]
) -> None:
    # Large ones, which stay in the file until they are decoded.
    path = write(tmp_path / "db", [jpeg(n, 150, 160) for n in range(BATCH)])
    other = write(tmp_path / "other", [jpeg(n, 150, 160) for n in range(100, 100 + BATCH)])
    made = reader_of(path, monkeypatch, 2, crop_size=31)
    expected = reader_of(path, monkeypatch, 0, crop_size=31)
    os.replace(other / "data.mdb", path / "data.mdb")
    assert same(made.read(), expected.read())
    assert set(done) == {0}
    made.close()
    expected.close()


@pytest.mark.usefixtures("shared")
def test_images_that_do_not_belong_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "db", [jpeg(n, 40 + n // 8) for n in range(BATCH)])
    reader = reader_of(path, monkeypatch, 1)
    with pytest.raises(CaffeError, match=r"record 8 .*3x41x48 and 3x40x48"):
        reader.read()
    reader.close()


def test_batches_go_on_when_processes_are_sent_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[int], said: list[str]
) -> None:
    path = write(tmp_path / "db", [jpeg(n) for n in range(30)])
    made = reader_of(path, monkeypatch, 2, crop_size=31)
    expected = reader_of(path, monkeypatch, 0, crop_size=31)
    assert same(made.read(), expected.read())
    assert made._decoders is not None
    processes = made._decoders._all
    for process in processes:
        assert process._pipe.poll(PATIENCE)
        process._process.terminate()
    done.clear()
    for _ in range(3):
        assert same(made.read(), expected.read())
    assert sum(done) > 0
    killed = processes[0]._process
    killed.kill()
    killed.wait()
    for _ in range(5):
        assert same(made.read(), expected.read())
    assert sum("A process that decodes records has ended" in line for line in said) == 1
    made.close()
    made.close()
    expected.close()
    assert [process._process.poll() for process in processes] == [-signal.SIGKILL] * 2


def test_does_without_where_none_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr(subprocess, "Popen", refuse)
    reader = reader_of(write(tmp_path / "db", [jpeg(n) for n in range(30)]), monkeypatch, 2)
    assert reader.read().labels.tolist() == list(range(300, 300 + BATCH))
    reader.close()


#: Starts a process, says its number, and waits.
STARTER = """
import sys
from caffe_dns.data.decoding_processes import DecodingProcesses
processes = DecodingProcesses(1, 1000)
print(processes._all[0]._process.pid, flush=True)
sys.stdin.read()
"""


def test_none_is_left_when_whoever_started_them_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        left = int(starter.stdout.readline())
        starter.kill()
    wait_until(lambda: not Path(f"/proc/{left}").exists())


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)
