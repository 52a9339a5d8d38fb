"""WindowData against a restatement of Caffe's loop for one window, pixel by pixel."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_dns.layers import Context
from caffe_dns.proto.caffe_pb2 import BlobProto
from tests.layers.data_harness import data_layer, labels, read, refused

HEIGHT, WIDTH = 40, 60
F = np.float32


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    monkeypatch.chdir(tmp_path)  # whose name may have a blank, at which a path among windows ends
    generator = np.random.default_rng(6)
    small = generator.integers(0, 256, (8, 12, 3), np.uint8)
    pixels = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), pixels)
    return pixels


def write_windows(folder: Path, foreground: str, background: str = "0 0.1 0 0 9 9") -> None:
    (folder / "windows").write_text(
        f"# 0\na.png\n3 {HEIGHT} {WIDTH}\n1\n{foreground}\n"
        f"# 1\nb.png\n3 {HEIGHT} {WIDTH}\n2\n{background}\n0 0.5 3 3 5 5\n"
    )


def definition(folder: Path, window: str = "", transform: str = "crop_size: 13") -> str:
    return (
        f"type: 'WindowData' window_data_param {{ source: '{folder}/windows' batch_size: 4 "
        f"fg_threshold: 0.6 bg_threshold: 0.3 {window} }} transform_param {{ {transform} }}"
    )


def c_round(value: np.float32) -> int:
    whole = math.floor(abs(value))
    return int(math.copysign(whole + (abs(value) - whole >= 0.5), value))


def expected(
    image: np.ndarray,
    box: tuple[int, int, int, int],
    crop: int,
    pad: int,
    square: bool,
    mirror: bool,
    mean: np.ndarray | None,
    scale: float,
) -> np.ndarray:
    """One window as Caffe's load_batch makes it; `mean` is a mean image or None."""
    x1, y1, x2, y2 = box
    size = [crop, crop]  # width, height
    pad_w = pad_h = 0
    if pad > 0 or square:
        context_scale = F(crop) / F(crop - 2 * pad)
        half_h, half_w = F(F(y2 - y1 + 1) / 2.0), F(F(x2 - x1 + 1) / 2.0)
        center_x, center_y = F(F(x1) + half_w), F(F(y1) + half_h)
        if square:
            if half_h > half_w:
                half_w = half_h
            else:
                half_h = half_w
        x1, x2 = (
            c_round(center_x - half_w * context_scale),
            c_round(center_x + half_w * context_scale),
        )
        y1, y2 = (
            c_round(center_y - half_h * context_scale),
            c_round(center_y + half_h * context_scale),
        )
        unclipped = y2 - y1 + 1, x2 - x1 + 1
        pad_x1, pad_y1 = max(0, -x1), max(0, -y1)
        pad_x2, pad_y2 = max(0, x2 - image.shape[1] + 1), max(0, y2 - image.shape[0] + 1)
        x1, y1, x2, y2 = x1 + pad_x1, y1 + pad_y1, x2 - pad_x2, y2 - pad_y2
        scale_x, scale_y = F(crop) / F(unclipped[1]), F(crop) / F(unclipped[0])
        size = [c_round(F(x2 - x1 + 1) * scale_x), c_round(F(y2 - y1 + 1) * scale_y)]
        pad_w = c_round(F(pad_x2 if mirror else pad_x1) * scale_x)
        pad_h = c_round(F(pad_y1) * scale_y)
        size = [min(size[0], crop - pad_w), min(size[1], crop - pad_h)]
    part = cv2.resize(image[y1 : y2 + 1, x1 : x2 + 1], tuple(size))
    if mirror:
        part = part[:, ::-1]
    result = np.zeros((3, crop, crop), F)
    offset = 0 if mean is None else (mean.shape[2] - crop) // 2
    for h in range(part.shape[0]):
        for w in range(part.shape[1]):
            for c in range(3):
                pixel = F(part[h, w, c])
                if mean is not None:
                    pixel = pixel - mean[c, h + offset + pad_h, w + offset + pad_w]
                result[c, h + pad_h, w + pad_w] = pixel * F(scale)
    return result


BOXES = [(10, 8, 30, 20), (0, 0, 12, 35), (41, 5, 59, 39), (3, 30, 58, 38)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(("pad", "mode"), [(0, "warp"), (2, "warp"), (0, "square"), (3, "square")])
@pytest.mark.parametrize("mirror", [False, True])
def test_warps_as_caffe_does(
    tmp_path: Path,
    image: np.ndarray,
    box: tuple[int, int, int, int],
    pad: int,
    mode: str,
    mirror: bool,
) -> None:
    write_windows(tmp_path, "5 0.8 {} {} {} {}".format(*box))
    mean = np.random.default_rng(7).uniform(90, 150, (3, 17, 18)).astype(F)
    blob = BlobProto(num=1, channels=3, height=17, width=18, data=mean.ravel().tolist())
    (tmp_path / "mean").write_bytes(blob.SerializeToString())
    text = definition(
        tmp_path,
        f"fg_fraction: 1 context_pad: {pad} crop_mode: '{mode}' scale: 0.25",
        f"crop_size: 13 mirror: {str(mirror).lower()} mean_file: '{tmp_path}/mean'",
    )
    plain, flipped = (
        expected(image, box, 13, pad, mode == "square", m, mean, 0.25) for m in (False, True)
    )
    seen = set()
    with data_layer(text) as layer:
        for data, label in read(layer, 3):
            assert label.tolist() == [5] * 4
            for window in data:
                kind = "plain" if np.array_equal(window, plain) else "flipped"
                assert kind == "plain" or np.array_equal(window, flipped)
                seen.add(kind)
    assert seen == ({"plain", "flipped"} if mirror else {"plain"})


def test_mean_values_do_not_reach_the_padding(tmp_path: Path, image: np.ndarray) -> None:
    write_windows(tmp_path, "5 0.8 0 0 5 5")
    text = definition(
        tmp_path,
        "fg_fraction: 1 context_pad: 4",
        "crop_size: 13 mean_value: 10 mean_value: 20 mean_value: 30",
    )
    raw = expected(image, (0, 0, 5, 5), 13, 4, False, False, None, 1)
    with data_layer(text) as layer:
        data = read(layer, 1)[0][0][0]
    filled = data != 0
    assert not filled.all()
    means = np.array([10, 20, 30], F)[:, None, None]
    assert np.array_equal(data, np.where(filled, raw - means, 0))


@pytest.mark.usefixtures("image")
def test_each_batch_is_background_then_foreground(tmp_path: Path) -> None:
    write_windows(tmp_path, "5 0.6 1 2 20 30")
    with data_layer(definition(tmp_path, "fg_fraction: 0.3")) as layer:
        assert labels(layer, 3) == [[0, 0, 0, 5]] * 3
        assert layer.position() == 12


@pytest.mark.usefixtures("image")
def test_draws_depend_on_seed_and_record(tmp_path: Path) -> None:
    lines = "\n".join(f"{n + 1} 0.9 {n} 0 {n + 9} 9" for n in range(30))
    write_windows(tmp_path, lines)
    path = tmp_path / "windows"
    path.write_text(path.read_text().replace("\n1\n1 0.9", "\n30\n1 0.9"))
    text = definition(tmp_path, "fg_fraction: 1 cache_images: true")
    with data_layer(text, context=Context(seed=1)) as layer:
        whole = labels(layer, 5)
    assert len({label for batch in whole for label in batch}) > 5
    with data_layer(text, context=Context(seed=1)) as layer:
        layer.seek(12)
        assert labels(layer, 2) == whole[3:]
    with data_layer(text, context=Context(seed=2)) as layer:
        assert labels(layer, 5) != whole


@pytest.mark.usefixtures("image")
def test_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_windows(tmp_path, "5 0.6 1 2 20 30")
    with data_layer(definition(tmp_path)):
        pass
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].endswith("] Window data layer:")
    assert lines[1:6] == [
        "  foreground (object) overlap threshold: 0.6",
        "  background (non-object) overlap threshold: 0.3",
        "  foreground sampling fraction: 0.25",
        "  cache_images: 0",
        "  root_folder: ",
    ]
    assert [line.split("] ", 1)[1] for line in lines[6:]] == [
        f"num: 0 a.png 3 {HEIGHT} {WIDTH} windows to process: 1",
        "Number of images: 2",
        "class 0 has 1 samples",
        "class 5 has 1 samples",
        "Amount of context padding: 0",
        "Crop mode: warp",
        "output data size: 4,3,13,13",
    ]


@pytest.mark.usefixtures("image")
def test_wrong_windows(tmp_path: Path) -> None:
    path = tmp_path / "windows"
    text = definition(tmp_path)
    assert "cannot be read: No such file" in refused(text)
    for content, message in [
        ("", "Window file is empty"),
        (
            "# 0\na.png\n3 40 60\n2\n1 0.9 1 2 3 4",
            "windows:5: layer 'layer': breaks the format at or after a.png",
        ),
        ("# x", "breaks the format at or after the first image"),
        ("0 a.png", "has '0' where '#'"),
        ("# 1 a.png 3 40 60 0", "has image 1 where image 0 should stand"),
        ("# 0 a.png 3 40 60 1 0 0.9 1 2 3 4", "gives a foreground window of a.png the label 0"),
        ("# 0 a.png 3 40 60 1 1 0.9 1 2 3 4", "has no background windows"),
        ("# 0 a.png 3 40 60 1 0 0.1 1 2 3 4", "has no foreground windows"),
        ("# 0 a.png 1 40 60 2 1 0.9 1 2 3 4 0 0 1 1 2 2", "is about images of 1 channels"),
    ]:
        path.write_text(content)
        assert message in refused(text)
    write_windows(tmp_path, f"5 0.9 0 0 {WIDTH} 9")
    whole = definition(tmp_path, "fg_fraction: 1")
    assert f"a.png: layer 'layer': window (0, 0) to ({WIDTH}, 9) does not lie" in refused(
        whole, batches=1
    )
    (tmp_path / "a.png").write_bytes(b"")
    assert "a.png: layer 'layer': is not an image" in refused(whole, batches=1)


@pytest.mark.usefixtures("image")
def test_wrong_settings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_windows(tmp_path, "5 0.9 0 0 9 9")
    for window, transform, message in [
        ("", "", "transform_param.crop_size: must be given"),
        ("context_pad: 7", "crop_size: 13", "leaves nothing of crop_size 13"),
        ("", "crop_size: 9 mean_value: 1 mean_value: 2", "mean_value: is given 2 times"),
        ("batch_size: 0", "crop_size: 9", "window_data_param.batch_size"),
    ]:
        assert message in refused(definition(tmp_path, window, transform))
    with data_layer(definition(tmp_path, "", "crop_size: 9 scale: 2")):
        assert "takes scale from window_data_param" in capfd.readouterr().err
