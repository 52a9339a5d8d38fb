"""Pixels of JPEGs' planes: those of libjpeg, to the last bit.

libjpeg gives out planes only as gray images; so a JPEG in colours is put together of three.
"""

from __future__ import annotations

import os
import struct

import cv2
import numpy as np
import pytest
import torch

from caffe_dns.data import jpeg_planes
from caffe_dns.data.crops import Cut
from caffe_dns.data.plain_jpegs import PlainJpeg

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

SIZES = [(32, 40), (37, 51), (50, 33), (33, 64)]
DENSITIES = [(1, 1), (1, 2), (2, 1), (2, 2)]
CROP = (29, 30)


def segments(jpeg: bytes) -> dict[int, bytes]:
    """Those of a gray JPEG by their markers, those of one marker together; 0 is for the scan."""
    found: dict[int, bytes] = {}
    at = 2
    while True:
        _, marker, length = struct.unpack_from(">BBH", jpeg, at)
        end = at + 2 + length
        found[marker] = found.get(marker, b"") + jpeg[at:end]
        at = end
        if marker == 0xDA:
            return {**found, 0: jpeg[at:-2]}


def in_colours(kind: PlainJpeg, grays: list[bytes]) -> bytes:
    """A JPEG of planes that are JPEGs, each in a scan of its own."""
    parts = [segments(gray) for gray in grays]
    channels = bytes((1, kind.columns << 4 | kind.rows, 0, 2, 0x11, 0, 3, 0x11, 0))
    frame = struct.pack(">BBHBHHB", 0xFF, 0xC0, 17, 8, kind.height, kind.width, 3) + channels
    scans = [
        part[0xC4] + bytes((0xFF, 0xDA, 0, 8, 1, number, 0, 0, 63, 0)) + part[0]
        for number, part in enumerate(parts, 1)
    ]
    return b"".join([b"\xff\xd8", parts[0][0xDB], frame, *scans, b"\xff\xd9"])


def decoded(jpeg: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def put(memory: torch.Tensor, start: int, pitch: int, plane: np.ndarray) -> None:
    lines, columns = plane.shape
    target = memory[start : start + lines * pitch].view(lines, pitch)
    target[:, :columns] = torch.from_numpy(plane)


@pytest.mark.parametrize("way", ["PyTorch", "Triton"])
def test_they_are_libjpegs(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "Triton":
        pytest.importorskip("triton")
        monkeypatch.setattr("caffe_dns.kernels.wanted", lambda device: True)
    elif torch.cuda.is_available():
        monkeypatch.setattr("caffe_dns.kernels.wanted", lambda device: False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = np.random.default_rng(3)
    kinds = [PlainJpeg(*size, *density) for size in SIZES for density in DENSITIES]
    layout, size = jpeg_planes.lay_out(np.array(kinds))
    memory = torch.full((size,), 99, dtype=torch.uint8)
    cuts: list[Cut] = []
    wanted: list[np.ndarray] = []
    for kind, (*starts, pitch, colour_pitch, lines, columns, _, _) in zip(
        kinds, layout.tolist(), strict=True
    ):
        shapes = [(kind.height, kind.width), (lines, columns), (lines, columns)]
        grays = [
            bytes(cv2.imencode(".jpg", generator.integers(0, 256, shape, np.uint8))[1])
            for shape in shapes
        ]
        for gray, start, each in zip(
            grays, starts, (pitch, colour_pitch, colour_pitch), strict=True
        ):
            put(memory, start, each, decoded(gray))
        top, left = kind.height - CROP[0], kind.width - CROP[1]
        cut = Cut(top // len(cuts[:2] or "1"), left // len(cuts[:3] or "1"), False)
        image = decoded(in_colours(kind, grays)).transpose(2, 0, 1)
        assert image.shape == (3, kind.height, kind.width)
        wanted.append(image[:, cut.top : cut.top + CROP[0], cut.left : cut.left + CROP[1]].copy())
        cuts.append(cut)
    result = torch.full((len(kinds) + 1, 3, *CROP), 7, dtype=torch.uint8, device=device)
    places = [*range(len(kinds), 0, -1)]
    corners = [(cut.top, cut.left, place) for cut, place in zip(cuts, places, strict=True)]
    jpeg_planes.pixels(memory.to(device), np.hstack([layout, corners]), result)
    for place, image in zip(places, wanted, strict=True):
        assert np.array_equal(result[place].cpu().numpy(), image)
    assert (result[0] == 7).all()
