"""Loading, resizing and cropping images."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from caffe_dns.errors import CaffeError
from caffe_dns.pycaffe import io


def picture(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 2, shape).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(4, 5), (11, 3), (14, 19)])
def test_resizing_photographs(size: tuple[int, int], channels: int) -> None:
    image = picture(9, 7, channels)
    low = image.min()
    ys, xs = (torch.linspace(-1, 1, 2 * extent + 1, dtype=torch.float64)[1::2] for extent in size)
    grid = torch.stack([xs.expand(size), ys[:, None].expand(size)], -1)[None]
    source = torch.from_numpy(image - low).double().permute(2, 0, 1)[None]
    expected = F.grid_sample(source, grid, padding_mode="zeros", align_corners=False)[0] + low
    resized = io.resize_image(image, size)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected.permute(1, 2, 0), atol=1e-5)


def test_resizing_other_arrays() -> None:
    image = picture(9, 7, 5)
    source = torch.from_numpy(image).double().permute(2, 0, 1)[None]
    for size in ((4, 5), (14, 19)):
        expected = F.interpolate(source, size, mode="bilinear", align_corners=True)[0]
        np.testing.assert_allclose(
            io.resize_image(image, size), expected.permute(1, 2, 0), atol=1e-5
        )


def test_nearest_pixels() -> None:
    image = picture(4, 6, 3)
    assert np.array_equal(
        io.resize_image(image, (8, 12), interp_order=0), image.repeat(2, 0).repeat(2, 1)
    )
    with pytest.raises(ValueError, match="interp_order must be 0 or 1, not 3"):
        io.resize_image(image, (8, 12), interp_order=3)


def test_constant_images_stay_constant() -> None:
    assert (io.resize_image(np.full((4, 6, 3), 0.3, np.float32), (9, 9)) == np.float32(0.3)).all()


def test_ten_crops() -> None:
    images = [picture(6, 9, 2, seed=seed) for seed in range(2)]
    crops = io.oversample(images, (3, 4))
    assert crops.shape == (20, 3, 4, 2)
    for index, image in enumerate(images):
        corners = [image[:3, :4], image[:3, 5:], image[3:, :4], image[3:, 5:], image[1:4, 2:6]]
        expected = corners + [np.flip(corner, 1) for corner in corners]
        assert np.array_equal(crops[10 * index : 10 * index + 10], np.stack(expected))


def test_loading(folder: Path) -> None:
    rgb = np.random.default_rng(1).integers(256, size=(4, 5, 3), dtype=np.uint8)
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    alpha = np.dstack([bgr, np.full((4, 5), 9, np.uint8)])
    gray = rgb[:, :, 0]
    for name, pixels in (
        ("color", bgr),
        ("alpha", alpha),
        ("gray", gray),
        ("deep", bgr.astype(np.uint16) * 257),
    ):
        cv2.imwrite(f"{name}.png", pixels)
    for name in ("color", "alpha", "deep"):
        image = io.load_image(f"{name}.png")
        assert image.dtype == np.float32
        np.testing.assert_allclose(image, rgb / 255, atol=1e-6)
    np.testing.assert_allclose(io.load_image("gray.png"), np.dstack([gray] * 3) / 255, atol=1e-6)
    np.testing.assert_allclose(
        io.load_image("gray.png", color=False)[:, :, 0], gray / 255, atol=1e-6
    )
    luminance = rgb / 255 @ [0.2125, 0.7154, 0.0721]
    cv2.imwrite("alpha.tiff", (alpha / 255).astype(np.float32))
    np.testing.assert_allclose(io.load_image("alpha.tiff"), rgb / 255, atol=1e-6)
    with Path("gray.png").open("rb") as stream:
        np.testing.assert_array_equal(io.load_image(stream), io.load_image("gray.png"))
    image = io.load_image("color.png", color=False)
    np.testing.assert_allclose(image[:, :, 0], luminance, atol=1e-6)


def test_photographs_are_turned_as_their_exif_says(folder: Path) -> None:
    """As skimage and OpenCV do (a real Caffe loads 7 by 6 of a file of 6 by 7 that is turned)."""
    image = np.zeros((6, 7, 3), np.uint8)
    image[:3] = 255
    plain = cv2.imencode(".jpg", image)[1].tobytes()
    orientation = struct.pack("<4sIHHHII", b"II*\0", 8, 1, 0x0112, 3, 1, 6) + bytes(4)
    exif = b"Exif\0\0" + orientation
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    Path("turned.jpg").write_bytes(plain[:2] + segment + plain[2:])
    turned = io.load_image("turned.jpg")
    assert turned.shape == (7, 6, 3)
    assert (turned[:, 3:] > 0.8).all() and (turned[:, :3] < 0.2).all()
    assert io.load_image("turned.jpg", color=False).shape == (7, 6, 1)


def test_files_that_are_no_images(folder: Path) -> None:
    with pytest.raises(OSError, match=r"none\.png: cannot be read: No such file"):
        io.load_image("none.png")
    with pytest.raises(OSError, match="the open file: is not an image"):
        io.load_image(BytesIO(b"text"))
    for content in (b"", b"text"):
        Path("text.png").write_bytes(content)
        with pytest.raises(CaffeError, match=r"text\.png: is not an image"):
            io.load_image("text.png")
