"""JPEGs that the units of a GPU decode: the usual pixels, to the last bit. Needs such a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from caffe_dns.data import jpeg_batch
from caffe_dns.device import nvjpeg
from caffe_dns.device.nvjpeg import JpegUnits
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import TEST
from tests.data.test_decoding_processes import write
from tests.data.test_jpeg_batches import BATCH, CROP, GPU, other, readers, same_batches

FACTORS = {
    name: getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}")
    for name in ("420", "422", "440", "444")
}


def gpu_or_skip() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    try:
        jpeg_batch.units_of(GPU)
    except CaffeError as error:
        pytest.skip(str(error))
    return GPU


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many JPEGs a GPU's units have decoded, each time."""
    start, counts = JpegUnits.start, []

    def counted(self: JpegUnits, *settings: Any) -> Callable[[], nvjpeg.Flags]:
        wait = start(self, *settings)

        def waited() -> nvjpeg.Flags:
            done = wait()
            if done.any():
                counts.append(int(done.sum()))
            return done

        return waited

    monkeypatch.setattr(JpegUnits, "start", counted)
    return counts


@pytest.mark.parametrize("factor", FACTORS)
def test_a_gpu_gives_the_same_bits(tmp_path: Path, factor: str, decoded: list[int]) -> None:
    device = gpu_or_skip()
    factors = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, FACTORS[factor])
    shapes = [(64, 64), (37, 51), (99, 64), (40, 33), (256, 256), (241, 130), (500, 375)]
    records = [
        other(
            number, ".jpg", *factors, cv2.IMWRITE_JPEG_QUALITY, quality, height=height, width=width
        )
        for number, ((height, width), quality) in enumerate(
            (shape, quality) for shape in shapes for quality in (30, 75, 95, 100)
        )
    ]
    path = write(tmp_path / "db", records)
    same_batches(path, 3, CROP, device=device)
    same_batches(path, 3, CROP, device=device, phase=TEST)
    assert factor == "440" or sum(decoded) >= 8  # which not all units know, nor small images


def test_a_gpu_leaves_others_here(tmp_path: Path, decoded: list[int]) -> None:
    device = gpu_or_skip()
    records = [other(number, ".jpg", height=256, width=256) for number in range(2 * BATCH)]
    records[2] = other(2, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    records[5] = other(5, ".png")
    records[7].data = records[7].data[:-900]  # cut short
    same_batches(write(tmp_path / "db", records), 2, device=device)
    assert decoded == [BATCH - 3, BATCH]


def test_a_gpu_survives_damage(tmp_path: Path, decoded: list[int]) -> None:
    """What is damaged may have other pixels; all others are as they are."""
    device = gpu_or_skip()
    records = [other(number, ".jpg", height=256, width=256) for number in range(2 * BATCH)]
    for number, cut in ((3, 900), (13, 1500)):
        records[number].data = records[number].data[:-cut] + b"\xff\xd9"
    damaged = bytearray(records[8].data)
    damaged[900:1000] = b"\xff" * 100
    records[8].data = bytes(damaged)
    with_gpu, without = readers(write(tmp_path / "db", records), device=device)
    for some in ((3, 8), (3,)):
        found, wanted = (reader.read().tops(device)[0] for reader in (with_gpu, without))
        whole = [index for index in range(BATCH) if index not in some]
        assert torch.equal(found[whole], wanted[whole])
        assert torch.isfinite(found).all()
    assert sum(decoded) >= 2 * BATCH - 3
    with_gpu.close()
    without.close()
