"""TSN's VideoData: clips of parts of videos, read by hand with OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_dns.errors import CaffeError
from tests.layers.data_harness import data_layer, read, refused

FRAMES, HEIGHT, WIDTH = 11, 20, 24


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two folders of frames, of colour and of flow, numbered from 1 on."""
    draws = np.random.default_rng(1)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for number in range(1, FRAMES + 1):
            frame = draws.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            cv2.imwrite(f"{tmp_path}/{folder}/image_{number:04d}.png", frame)
            for axis in "xy":
                flow = draws.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
                cv2.imwrite(f"{tmp_path}/{folder}/flow_{axis}_{number:03d}.png", flow)
    (tmp_path / "list").write_text(f"{tmp_path}/a {FRAMES} 3\n{tmp_path}/b {FRAMES} 5\n")
    return tmp_path


RGB = "modality: RGB name_pattern: 'image_%04d.png'"
FLOW = "name_pattern: 'flow_%c_%03d.png'"


def text(folder: Path, settings: str, transform: str = "") -> str:
    return (
        f"type: 'VideoSegments' video_data_param {{ source: '{folder}/list' num_segments: 3 "
        f"new_length: 2 {settings} }} transform_param {{ {transform} }}"
    )


def frames(folder: Path, name: str, starts: list[int], flow: bool = False) -> np.ndarray:
    """Planes of two frames from each start on."""
    planes = []
    for number in (each for start in starts for each in (start, start + 1)):
        if flow:
            names = [f"{folder}/{name}/flow_{axis}_{number:03d}.png" for axis in "xy"]
            planes += [cv2.imread(each, 0) for each in names]
        else:
            image = cv2.imread(f"{folder}/{name}/image_{number:04d}.png")
            assert image is not None
            planes += list(image.transpose(2, 0, 1))
    return np.array(planes, np.float32)


def test_middles_in_tests(videos: Path) -> None:
    # Parts of 3 frames: one of two places is left, and the middle is the second.
    with data_layer(
        text(videos, f"{RGB} batch_size: 2", "mean_value: [1, 2, 3] scale: 2")
    ) as layer:
        assert layer.reshape([]) == [(2, 18, HEIGHT, WIDTH), (2, 1, 1, 1)]
        ((data, labels),) = read(layer, 1)
    assert labels.flatten().tolist() == [3, 5]
    mean = np.tile([1, 2, 3], 6)[:, None, None]
    for place, name in enumerate("ab"):
        np.testing.assert_array_equal(data[place], (frames(videos, name, [2, 5, 8]) - mean) * 2)


def test_clips_anywhere_in_their_parts_while_training(videos: Path) -> None:
    with data_layer(text(videos, f"{RGB} batch_size: 2"), train=True) as layer:
        clips = [data[0] for data, _ in read(layer, 24)]
    options = [
        frames(videos, "a", [x, 3 + y, 6 + z]) for x in (1, 2) for y in (1, 2) for z in (1, 2)
    ]
    found = [[at for at in range(8) if np.array_equal(clip, options[at])] for clip in clips]
    assert all(len(each) == 1 for each in found)
    assert len({each[0] for each in found}) > 4


def test_flow_turns_over_with_mirrors(videos: Path) -> None:
    (videos / "list").write_text(f"{videos}/a 6 1\n")
    transform = "mirror: true is_flow: true crop_size: 16"
    with data_layer(text(videos, FLOW, transform), train=True) as layer:
        clips = [data[0] for data, _ in read(layer, 30)]
    whole = frames(videos, "a", [1, 3, 5], flow=True)
    mirrored = whole[..., ::-1].copy()
    mirrored[::2] = 255 - mirrored[::2]
    kinds = set()
    for clip in clips:
        windows = [
            (kind, top, left)
            for kind, planes in enumerate((whole, mirrored))
            for top in range(HEIGHT - 15)
            for left in range(WIDTH - 15)
            if np.array_equal(clip, planes[:, top : top + 16, left : left + 16])
        ]
        assert len(windows) == 1
        kinds.add(windows[0][0])
    assert kinds == {0, 1}


def test_crops_of_several_shapes_and_places(videos: Path) -> None:
    (videos / "list").write_text(f"{videos}/a 6 1\n")
    transform = "crop_size: 10 multi_scale: true scale_ratios: [1, 0.6] fix_crop: true"
    with data_layer(text(videos, RGB, transform), train=True) as layer:
        clips = [data[0] for data, _ in read(layer, 60)]
    whole = frames(videos, "a", [1, 3, 5])
    # 0.6 of 20 rows are 12, which are near enough to 10.
    expected = {}
    for height in (20, 10):
        for width in (20, 10):
            rows, columns = (HEIGHT - height) // 4, (WIDTH - width) // 4
            for down, right in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
                top, left = down * rows, right * columns
                crop = whole[:, top : top + height, left : left + width].astype(np.uint8)
                resized = np.stack([cv2.resize(plane, (10, 10)) for plane in crop])
                expected[resized.tobytes()] = (height, width, down, right)
    found = {expected[clip.astype(np.uint8).tobytes()] for clip in clips}
    assert len(found) > 12


def test_what_does_not_fit(videos: Path) -> None:
    assert "is no pattern such as image_%04d.jpg" in refused(
        text(videos, "modality: RGB name_pattern: 'image_%c_%04d.jpg'")
    )
    assert "image_0002.jpg" in refused(text(videos, "modality: RGB"))
    assert "crop_size 30 is larger" in refused(text(videos, RGB, "crop_size: 30"))
    assert "must be positive" in refused(text(videos, "new_length: 0"))
    assert "is no field of TSN's" in refused(text(videos, "use_image: true"))
    assert "scale_ratios: must be" in refused(text(videos, RGB, "scale_ratios: 2"))
    tiny = "crop_size: 10 multi_scale: true scale_ratios: 0.01"
    with (
        pytest.raises(CaffeError, match="scale_ratios: leaves nothing of a frame's 20 rows"),
        data_layer(text(videos, RGB, tiny), train=True),
    ):
        pass
    (videos / "list").write_text(f"{videos}/a {'9' * 30} 1\n")
    assert "list:1: layer 'layer': is no line NAME FRAME LABEL" in refused(text(videos, RGB))
    (videos / "list").write_text(f"{videos}/a 3\n")
    assert "is no line NAME FRAME LABEL" in refused(text(videos, RGB))
