"""The transform against a pixel by pixel restatement of Caffe's, in single precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format

from caffe_dns.data.crops import Cut, crop
from caffe_dns.data.datum import Image
from caffe_dns.data.transform import RecordDraws, Transform, read_mean
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, BlobProto, TransformationParameter

SHAPE = (3, 7, 9)
DRAWS = RecordDraws(5, "transform/data")


def make(text: str, phase: int = TRAIN) -> Transform:
    param = text_format.Parse(text, TransformationParameter())
    return Transform(param, phase)


def write_mean(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    values = np.random.default_rng(8).uniform(90, 150, shape).astype(np.float32)
    blob = BlobProto(data=values.ravel().tolist())
    blob.shape.dim.extend(shape)
    path.write_bytes(blob.SerializeToString())
    return values


def expected(
    image: np.ndarray, cut: Cut, size: int, mean: np.ndarray | None, scale: float
) -> np.ndarray:
    """What Caffe computes for one image; `mean` is as large as the image."""
    channels, height, width = (image.shape[0], size, size) if size else image.shape
    result = np.empty((channels, height, width), np.float32)
    for c in range(channels):
        for h in range(height):
            for w in range(width):
                pixel = np.float32(image[c, cut.top + h, cut.left + w])
                if mean is not None:
                    pixel = pixel - mean[c, cut.top + h, cut.left + w]
                column = width - 1 - w if cut.mirrored else w
                result[c, h, column] = pixel * np.float32(scale)
    return result


@pytest.mark.parametrize("size", [0, 4])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("mean_kind", ["none", "file", "value", "values"])
@pytest.mark.parametrize("phase", [TRAIN, TEST])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_matches_caffe_exactly(
    tmp_path: Path, size: int, mirror: bool, mean_kind: str, phase: int, dtype: type
) -> None:
    generator = np.random.default_rng(4)
    images: Image = generator.integers(0, 256, (6, *SHAPE)).astype(dtype)
    mean = None
    text = f"crop_size: {size} mirror: {str(mirror).lower()} scale: 0.017"
    if mean_kind == "file":
        mean = write_mean(tmp_path / "mean", (1, *SHAPE))[0]
        text += f" mean_file: '{tmp_path / 'mean'}'"
    elif mean_kind != "none":
        values = [104.25] if mean_kind == "value" else [104, 117.5, 123]
        mean = np.empty(SHAPE, np.float32)
        mean[:] = np.array(values, np.float32)[:, None, None]
        text += "".join(f" mean_value: {value}" for value in values)
    transform = make(text, phase)

    draws = DRAWS.of(np.arange(6)).tolist()
    cuts = [transform.cutter.cut(SHAPE, draw) for draw in draws]
    if size and phase == TEST:
        assert {(cut.top, cut.left) for cut in cuts} == {(1, 2)}
    pixels = np.stack([crop(image, cut, size) for image, cut in zip(images, cuts, strict=True)])
    table = torch.tensor([[cut.top, cut.left, cut.mirrored] for cut in cuts])
    result = transform.apply(torch.from_numpy(pixels), table if transform.is_random else None)

    assert result.dtype == torch.float32
    assert tuple(result.shape[1:]) == transform.output_shape(SHAPE)
    for got, image, cut in zip(result.numpy(), images, cuts, strict=True):
        assert np.array_equal(got, expected(image, cut, size, mean, 0.017))


def test_random_crops_and_mirrors_reach_everything_evenly() -> None:
    transform = make("crop_size: 5 mirror: true")
    cuts = [transform.cutter.cut(SHAPE, draw) for draw in DRAWS.of(np.arange(6000)).tolist()]
    places = [(cut.top, cut.left) for cut in cuts]
    counts = [places.count((top, left)) for top in range(3) for left in range(5)]
    assert sum(counts) == 6000
    assert min(counts) > 300  # 400 expected
    assert 2800 < sum(cut.mirrored for cut in cuts) < 3200


def test_draws_belong_to_records() -> None:
    draws = RecordDraws(3, "a")
    records = np.array([0, 4095, 4096, 4097, 12_000_000_000])
    table = draws.of(records)
    assert table.min() >= 0
    assert table.max() < 1 << 32
    one_by_one = [RecordDraws(3, "a").of(records[index : index + 1])[0] for index in range(5)]
    assert np.array_equal(table, np.stack(one_by_one))
    assert not np.array_equal(table, RecordDraws(4, "a").of(records))
    assert not np.array_equal(table, RecordDraws(3, "b").of(records))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crop_size: 8", "transform_param.crop_size: crop_size 8 is larger than an image of 7x9"),
        ("mean_value: 1 mean_value: 2", "transform_param.mean_value: is given 2 times"),
    ],
)
def test_refuses_what_does_not_fit(text: str, message: str) -> None:
    with pytest.raises(CaffeError) as caught:
        make(text).output_shape(SHAPE)
    assert str(caught.value).startswith(message)


def test_mean_file_errors(tmp_path: Path) -> None:
    path = tmp_path / "mean"
    write_mean(path, (1, 3, 7, 8))
    with pytest.raises(CaffeError, match="the mean is of 3x7x8, an image here of 3x7x9"):
        make(f"mean_file: '{path}'").output_shape(SHAPE)
    with pytest.raises(CaffeError, match="both mean_file and mean_value"):
        make(f"mean_file: '{path}' mean_value: 1")
    with pytest.raises(CaffeError, match="none cannot be read: No such file"):
        make(f"mean_file: '{tmp_path / 'none'}'")
    path.write_bytes(b"\xff\xff\xff")
    with pytest.raises(CaffeError, match="mean is not a BlobProto file"):
        make(f"mean_file: '{path}'")
    write_mean(path, (2, 3, 7, 9))
    with pytest.raises(CaffeError, match="holds no single image, but values of 2x3x7x9"):
        make(f"mean_file: '{path}'")


def test_reads_old_and_three_axis_means(tmp_path: Path) -> None:
    path = tmp_path / "mean"
    values = write_mean(path, SHAPE)
    assert np.array_equal(read_mean(str(path)).numpy(), values)
    old = BlobProto(num=1, channels=3, height=7, width=9, data=values.ravel().tolist())
    path.write_bytes(old.SerializeToString())
    assert np.array_equal(read_mean(str(path)).numpy(), values)
