"""VideoData: clips of frames, cut and mirrored alike, read by hand with OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_dns.data.transform import RecordDraws
from caffe_dns.layers import Context
from caffe_dns.proto.caffe_pb2 import BlobProto
from caffe_dns.proto.wire import LENGTH, VARINT, tag, varint
from tests.layers.data_harness import data_layer, read, refused

FRAMES, HEIGHT, WIDTH = 9, 6, 8
C3D, VIDEO = "%06d.jpg", "image_%04d.jpg"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Folders a and b of frames under both forks' names, numbered from 1 on."""
    draws = np.random.default_rng(1)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for number in range(1, FRAMES + 1):
            frame = draws.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            for pattern in (C3D, VIDEO):
                cv2.imwrite(f"{tmp_path}/{folder}/{pattern % number}", frame)
    (tmp_path / "list").write_text("a 1 3\nb 2 5\n\na 4 0\n")
    return tmp_path


def clip(folder: Path, name: str, frames: range, pattern: str = C3D) -> np.ndarray:
    """The clip as it comes out, [C, L, H, W]."""
    images = [picture(f"{folder}/{name}/{pattern % number}") for number in frames]
    return np.stack(images).transpose(3, 0, 1, 2).astype(np.float32)


def picture(path: str, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    image = cv2.imread(path, flag)
    assert image is not None
    return image


def old(folder: Path, more: str = "", transform: str = "") -> str:
    return (
        f"type: 'VideoData' image_data_param {{ source: '{folder}/list' root_folder: '{folder}/' "
        f"use_image: true new_length: 3 batch_size: 2 {more} }} transform_param {{ {transform} }}"
    )


def test_clips_in_turn(videos: Path) -> None:
    text = old(videos, "sampling_rate: 2", "mean_value: [1, 2, 3] scale: 0.5")
    with data_layer(text) as layer:
        assert layer.reshape([]) == [(2, 3, 3, HEIGHT, WIDTH), (2,)]
        (first, labels), (second, more) = read(layer, 2)
    mean = np.array([1, 2, 3], np.float32)[:, None, None, None]
    np.testing.assert_array_equal(first[0], (clip(videos, "a", range(1, 6, 2)) - mean) / 2)
    np.testing.assert_array_equal(first[1], (clip(videos, "b", range(2, 7, 2)) - mean) / 2)
    np.testing.assert_array_equal(second[0], (clip(videos, "a", range(4, 9, 2)) - mean) / 2)
    assert [*labels, *more] == [3, 5, 0, 3]


def test_video_caffe(videos: Path) -> None:
    text = (
        f"type: 'VideoData' video_data_param {{ source: '{videos}/list' new_length: 4 "
        f"root_folder: '{videos}/' new_height: 3 new_width: 5 is_color: false }}"
    )
    with data_layer(text) as layer:
        ((data, labels),) = read(layer, 1)
    frames = [picture(f"{videos}/a/{VIDEO % number}", 0) for number in range(1, 5)]
    expected = [cv2.resize(frame, (5, 3)) for frame in frames]
    np.testing.assert_array_equal(data[0, 0], expected)
    assert labels == [3]


def test_all_frames_are_cut_alike(videos: Path) -> None:
    text = old(videos, "", "crop_size: 4 mirror: true")
    with data_layer(text, train=True, context=Context(seed=7)) as layer:
        ((data, _),) = read(layer, 1)
    draws = RecordDraws(7, "transform/layer").of(np.arange(2))
    for place, (name, start) in enumerate((("a", 1), ("b", 2))):
        mirror, top, left = draws[place]
        top, left = top % (HEIGHT - 3), left % (WIDTH - 3)
        expected = clip(videos, name, range(start, start + 3))[..., top : top + 4, left : left + 4]
        np.testing.assert_array_equal(data[place], expected[..., :: -1 if mirror & 1 else 1])


def test_clips_that_begin_anywhere(videos: Path) -> None:
    (videos / "list").write_text("a 9 1\n")
    text = old(videos, "use_temporal_jitter: true")
    starts = [clip(videos, "a", range(at, at + 3)) for at in range(1, 8)]
    with data_layer(text, train=True) as layer:
        clips = [each for data, _ in read(layer, 20) for each in data]
    found = {at for each in clips for at in range(7) if np.array_equal(each, starts[at])}
    assert found == set(range(7))


def test_mean_of_clips(videos: Path) -> None:
    """As C3D 1.0 writes it: five extents under 1 to 5, values under 6."""
    mean = np.random.default_rng(2).random((1, 3, 3, HEIGHT, WIDTH), np.float32)
    numbers = b"".join(tag(at, VARINT) + varint(n) for at, n in enumerate(mean.shape, 1))
    raw = numbers + tag(6, LENGTH) + varint(mean.nbytes) + mean.tobytes()
    blob = BlobProto(data=mean.ravel())
    blob.shape.dim.extend(mean.shape)
    for content in (raw, blob.SerializeToString()):
        (videos / "mean").write_bytes(content)
        with data_layer(old(videos, "", f"mean_file: '{videos}/mean'")) as layer:
            data = read(layer, 1)[0][0]
        np.testing.assert_array_equal(data[0], clip(videos, "a", range(1, 4)) - mean[0])


def test_video_files(videos: Path) -> None:
    writer = cv2.VideoWriter(
        f"{videos}/c.avi", cv2.VideoWriter.fourcc(*"MJPG"), 25, (WIDTH * 8, HEIGHT * 8)
    )
    for number in range(FRAMES):
        writer.write(np.full((HEIGHT * 8, WIDTH * 8, 3), 25 * number, np.uint8))
    writer.release()
    (videos / "list").write_text("c.avi 4 1\n")
    for text, first in (
        (old(videos).replace("true", "false"), 4),
        (
            f"type: 'VideoData' video_data_param {{ source: '{videos}/list' new_length: 3 "
            f"root_folder: '{videos}/' }}",
            2,
        ),
    ):
        with data_layer(text) as layer:
            data = read(layer, 1)[0][0]
        assert ((data[0, :, :, 0, 0] + 12) // 25).tolist() == [[first, first + 1, first + 2]] * 3
    (videos / "list").write_text("c.avi 7 1\n")
    assert "has no 3 frames from frame 7 on" in refused(old(videos).replace("true", "false"))


def test_what_does_not_fit(videos: Path) -> None:
    assert "000011.jpg" in refused(old(videos, "sampling_rate: 5"))
    (videos / "list").write_text("a 1 3\nb 2\n")
    assert "list:2: layer 'layer': is no line NAME FRAME LABEL: b 2" in refused(old(videos))
    (videos / "list").write_text(f"a 1 {2**31}\n")
    assert f"list:1: layer 'layer': is no line NAME FRAME LABEL: a 1 {2**31}" in refused(
        old(videos)
    )
    (videos / "list").write_text("\n")
    assert "lists no clips" in refused(old(videos))
    (videos / "list").write_text("a 2 3\n")
    assert "is no file" in refused(old(videos).replace("true", "false"))
    assert "must be positive" in refused(old(videos, "sampling_rate: 0"))
    cv2.imwrite(f"{videos}/a/{C3D % 4}", np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8))
    assert "/a: layer 'layer': has frames of several sizes" in refused(old(videos))
    text = f"type: 'ImageData' image_data_param {{ source: '{videos}/list' new_length: 2 }}"
    assert "is for layers of type VideoData only" in refused(text)
