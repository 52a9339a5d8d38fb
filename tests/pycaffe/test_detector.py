"""caffe.Detector: windows in, scores out."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import caffe_dns.pycaffe as caffe
from caffe_dns.errors import CaffeError
from tests.oracle import assert_close

NET = """
    layer { name: 'in' type: 'Input' top: 'data'
      input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
    layer { name: 'ip' type: 'InnerProduct' bottom: 'data' top: 'ip'
      inner_product_param { num_output: 6 weight_filler { type: 'xavier' } } }"""
MEAN = np.array([10.0, 20.0, 30.0])  # blue, green, red


def detector(**settings: object) -> caffe.Detector:
    Path("net.prototxt").write_text(NET)
    caffe.set_random_seed(1)  # of scores that cancel out, little would be left but rounding
    caffe.Net("net.prototxt", caffe.TEST).save("net.caffemodel")
    return caffe.Detector(
        "net.prototxt",
        "net.caffemodel",
        mean=MEAN,
        raw_scale=255,
        channel_swap=(2, 1, 0),
        **settings,  # type: ignore[arg-type]
    )


def image(name: str, height: int = 20, width: int = 24) -> np.ndarray:
    """A file of noise; the image as pycaffe loads it."""
    pixels = np.random.default_rng(len(name)).integers(256, size=(height, width, 3))
    cv2.imwrite(name, pixels.astype(np.uint8))
    return pixels[:, :, ::-1].astype(np.float32) / 255


def test_detections() -> None:
    net = detector()
    images = {"a.png": image("a.png"), "bb.png": image("bb.png")}
    windows = {
        "a.png": np.array([[2, 3, 10, 11], [0, 0, 8, 8]]),
        "bb.png": np.array([[1, 2, 9, 10]]),
    }
    found = net.detect_windows(windows.items())
    assert [detection["filename"] for detection in found] == ["a.png", "a.png", "bb.png"]
    weight = net.params["ip"][0].data
    for detection in found:
        y0, x0, y1, x1 = detection["window"]
        crop = images[detection["filename"]][y0:y1, x0:x1]  # of the input's size already
        blob = 255 * crop[:, :, ::-1].transpose(2, 0, 1) - MEAN.reshape(3, 1, 1)
        assert_close(detection["prediction"], (weight @ blob.ravel()).astype(np.float32), "scores")
    assert net.detect_windows([]) == []


def test_context() -> None:
    # By the formula of detector.py, an input of 8 with 2 of context around a window of 3 by 3:
    # the middle is 1.5 from its edge, half of the box is 1.5 * 8 / (8 - 2 * 2) = 3.
    net = detector(context_pad=2)
    pixels = image("a.png")
    inner = net.crop(pixels, np.array([4, 4, 6, 6]))  # 5.5 - 3 and 5.5 + 3, to even numbers
    assert_close(inner, caffe.io.resize_image(pixels[2:8, 2:8], (8, 8)), "inside")
    # 1.5 - 3 = -2 to 4.5 = 4, which is 7 pixels for 8: 2 outside are 2 (2.29) of the input, the
    # 5 inside are 6 (5.71). Outside is the mean, in RGB from 0 to 1.
    corner = net.crop(pixels, np.array([0, 0, 2, 2]))
    assert_close(corner[2:, 2:], caffe.io.resize_image(pixels[:4, :4], (6, 6)), "corner")
    outside = np.concatenate([corner[:2].reshape(-1, 3), corner[2:, :2].reshape(-1, 3)])
    assert_close(outside, np.broadcast_to(MEAN[::-1] / 255, outside.shape), "mean")
    # At the far corner what is inside fills the input from its start.
    far = net.crop(pixels, np.array([18, 22, 20, 24]))
    assert_close(far[:1, :1], corner[-1:, -1:] * 0 + far[0, 0], "shape")
    assert_close(far[-1, -1], MEAN[::-1] / 255, "mean")


def test_wrong_windows() -> None:
    net = detector()
    image("a.png")
    for window in ([0, 0, 0, 4], [-1, 0, 3, 3], [30, 30, 40, 40]):
        with pytest.raises(CaffeError, match=r"lies outside of an image of 20 by 24 pixels"):
            net.detect_windows([("a.png", np.array([window]))])
    with pytest.raises(CaffeError, match="a context_pad of 4 leaves no pixel of an input"):
        net.configure_crop(4)
    with pytest.raises(CaffeError, match=r"none\.png: cannot be read"):
        net.detect_windows([("none.png", np.array([[0, 0, 4, 4]]))])


def test_selective_search(monkeypatch: pytest.MonkeyPatch) -> None:
    net = detector()
    image("a.png")
    with pytest.raises(CaffeError, match="needs the package selective_search_ijcv_with_python"):
        net.detect_selective_search(["a.png"])
    asked = []

    def get_windows(files: list[str], cmd: str) -> list[np.ndarray]:
        asked.append((files, cmd))
        return [np.array([[0, 0, 8, 8]])]

    package = SimpleNamespace(get_windows=get_windows)
    monkeypatch.setitem(sys.modules, "selective_search_ijcv_with_python", package)
    (found,) = net.detect_selective_search(["a.png"])
    path = str(Path("a.png").absolute())
    assert asked == [([path], "selective_search_rcnn")] and found["filename"] == path
