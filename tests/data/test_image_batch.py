"""Batches for the CPU and for a GPU come out the same, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format

from caffe_dns.data.datum import Image
from caffe_dns.data.image_batch import BatchMemory, CroppedBatch, FinishedBatch, ImageBatch
from caffe_dns.data.transform import RecordDraws, Transform
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, BlobProto, TransformationParameter

COUNT, SHAPE = 6, (3, 7, 9)
CPU = torch.device("cpu")
MEANS = ["", "mean_file: 'mean'", "mean_value: 104.25", "mean_value: [104, 117.5, 123]"]


@pytest.fixture(autouse=True)
def mean_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(8).uniform(90, 150, SHAPE).astype(np.float32)
    blob = BlobProto(data=values.ravel().tolist())
    blob.shape.dim.extend(SHAPE)
    (tmp_path / "mean").write_bytes(blob.SerializeToString())
    monkeypatch.chdir(tmp_path)


def batches(transform: Transform, dtype: torch.dtype) -> tuple[FinishedBatch, CroppedBatch]:
    shape = transform.output_shape(SHAPE)
    finished = FinishedBatch(COUNT, shape, transform)
    return finished, CroppedBatch(COUNT, shape, transform, dtype, pin=False)


def images_of(dtype: torch.dtype) -> Image:
    images = np.random.default_rng(4).integers(0, 256, (COUNT, *SHAPE), np.uint8)
    return images if dtype == torch.uint8 else images / np.float32(3)


def results(made: tuple[ImageBatch, ...]) -> list[torch.Tensor]:
    return [batch.tops(CPU)[0] for batch in made]


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("crop", ["", "crop_size: 4"])
@pytest.mark.parametrize("mirror", ["", "mirror: true"])
@pytest.mark.parametrize("phase", [TRAIN, TEST])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_one_by_one(mean: str, crop: str, mirror: str, phase: int, dtype: torch.dtype) -> None:
    text = f"{mean} {crop} {mirror} scale: 0.017"
    transform = Transform(text_format.Parse(text, TransformationParameter()), phase)
    made = batches(transform, dtype)
    draws = RecordDraws(5, "transform/data").of(np.arange(COUNT)).tolist()
    for index, (image, draw) in enumerate(zip(images_of(dtype), draws, strict=True)):
        for batch in made:
            batch.put(index, image, transform.cutter.cut(SHAPE, draw))
            batch.labels[index] = index
    finished, cropped = results(made)
    assert finished.dtype == torch.float32
    assert torch.equal(finished, cropped)
    assert made[0].tops(CPU)[1].tolist() == made[1].tops(CPU)[1].tolist() == list(range(COUNT))


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("crop", ["", "crop_size: 4"])
@pytest.mark.parametrize("mirror", ["", "mirror: true"])
@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_all_at_once(mean: str, crop: str, mirror: str, phase: int) -> None:
    param = text_format.Parse(f"{mean} {crop} {mirror} scale: 0.25", TransformationParameter())
    transform = Transform(param, phase)
    images = images_of(torch.uint8)
    draws = RecordDraws(5, "transform/data").of(np.arange(COUNT))
    together, alone = batches(transform, torch.uint8), batches(transform, torch.uint8)
    for batch in together:
        batch.put_all(images, transform.cutter.cuts(SHAPE, draws))
    for index, image in enumerate(images):
        alone[0].put(index, image, transform.cutter.cut(SHAPE, draws[index].tolist()))
    expected = alone[0].tops(CPU)[0]
    assert all(torch.equal(result, expected) for result in results(together))


def test_memory_comes_back_when_nothing_uses_it() -> None:
    memory = BatchMemory()
    transform = Transform(TransformationParameter(), TEST)
    first = FinishedBatch(2, (1, 64, 64), transform, memory)
    address = first.images.data_ptr()
    kept, _ = first.tops(CPU)
    part = kept[1:]
    del first, kept
    second = FinishedBatch(2, (1, 64, 64), transform, memory)
    assert second.images.data_ptr() != address
    del part
    third = FinishedBatch(2, (1, 64, 64), transform, memory)
    assert third.images.data_ptr() == address
