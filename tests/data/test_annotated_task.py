"""Records that another process makes: the same images and labels as without, the same errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import text_format

from caffe_dns import rng
from caffe_dns.data import annotated_batches
from caffe_dns.data.annotated_batches import AnnotatedBatch, AnnotatedBatches, Normalization
from caffe_dns.data.annotated_task import AnnotatedMaker, AnnotatedTask
from caffe_dns.data.annotated_transform import AnnotatedTransform
from caffe_dns.data.batches import Share
from caffe_dns.data.db import open_database
from caffe_dns.data.decoding_processes import DecodingProcesses
from caffe_dns.data.sources import DatabaseSource
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import TRAIN, BatchSampler, TransformationParameter
from tests.data.test_decoding_processes import started, write
from tests.layers.detection.scenes import scene

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="processes share memory as Linux lets them"
)
TRANSFORM = """mirror: true resize_param { height: 20 width: 18 }
    distort_param { brightness_prob: 1 brightness_delta: 32 hue_prob: 0.5 hue_delta: 18 }"""
SAMPLER = "sampler { min_scale: 0.5 } sample_constraint { min_object_coverage: 0.5 } max_sample: 1"
BATCH = 13


@pytest.fixture(scope="module")
def ready() -> Iterator[DecodingProcesses]:
    processes = started(1, 1 << 20)
    yield processes
    processes.close()


@pytest.fixture
def done(ready: DecodingProcesses, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """That process is used by all readers: how many records it has made, by task."""
    counts = []
    run = ready.run

    def counted(task: Any, images: Any) -> Any:
        labels = run(task, images)
        counts.append(len(labels or ()))
        return labels

    monkeypatch.setattr(ready, "run", counted)
    monkeypatch.setattr(ready, "close", lambda: None)
    monkeypatch.setattr(annotated_batches, "DecodingProcesses", lambda count, memory: ready)
    return counts


def reader_of(
    path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, *, with_boxes: bool = True
) -> AnnotatedBatches:
    monkeypatch.setattr(annotated_batches, "decoding_processes", lambda *_: processes)
    transform = text_format.Parse(TRANSFORM, TransformationParameter())
    samplers = [text_format.Parse(SAMPLER, BatchSampler())]
    maker = AnnotatedMaker(
        AnnotatedTransform(transform, samplers, TRAIN),
        partial(rng.numpy_generator, 3, "annotated/data"),
        color=False,
        gray=False,
        with_boxes=with_boxes,
    )
    source = DatabaseSource(open_database(str(path)))
    return AnnotatedBatches(source, maker, Normalization(None, 1), Share(), BATCH, for_gpu=True)


def same(made: AnnotatedBatch, expected: AnnotatedBatch) -> bool:
    return torch.equal(made.images, expected.images) and torch.equal(made.labels, expected.labels)


@pytest.mark.parametrize("with_boxes", [True, False])
def test_the_same_batches_as_without_processes(
    with_boxes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[int]
) -> None:
    path = write(tmp_path / "db", [scene(n, encoded=n % 2 == 0) for n in range(30)])
    made = reader_of(path, monkeypatch, 1, with_boxes=with_boxes)
    expected = reader_of(path, monkeypatch, 0, with_boxes=with_boxes)
    for _ in range(3):
        assert same(made.read(), expected.read())
    assert sum(done) == 3 * (BATCH - 1)  # all but the first of each, which says how large they are
    made.close()
    expected.close()


def test_what_is_unusual_is_done_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[int]
) -> None:
    records = [scene(n) for n in range(BATCH)]
    records[9].datum.data = b"12345"
    reader = reader_of(write(tmp_path / "db", records), monkeypatch, 1)
    with pytest.raises(CaffeError, match=r"record 9 .key '0009'.: .* holds 5 values"):
        reader.read()
    assert done == [0]
    reader.close()


def test_a_task_has_no_result_where_an_image_has_another_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ready: DecodingProcesses
) -> None:
    records = [scene(n) for n in range(2)]
    reader = reader_of(write(tmp_path / "db", records), monkeypatch, 0)
    values = [record.SerializeToString() for record in records]
    for shape, expected in (((3, 20, 18), True), ((3, 18, 20), False)):
        task = AnnotatedTask(values, reader._maker, [0, 1], 0, shape)
        images = torch.zeros(2, *shape, dtype=torch.uint8).numpy()
        assert (ready.run(task, images) is not None) == expected
    reader.close()
