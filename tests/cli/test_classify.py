"""`dns classify`: images in, scores out."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import caffe_dns.pycaffe as caffe
from caffe_dns import load_net
from caffe_dns.files import reading
from caffe_dns.weights import save_weights
from tests.cli.harness import complaint, run_well
from tests.oracle import assert_close
from tests.user_code import fresh_imports

Capture = pytest.CaptureFixture[str]
NET = """
    layer { name: 'in' type: 'Input' top: 'data'
      input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }
    layer { name: 'ip' type: 'InnerProduct' bottom: 'data' top: 'ip'
      inner_product_param { num_output: 6 weight_filler { type: 'xavier' } } }"""
FLAGS = ["--model_def", "net.prototxt", "--pretrained_model", "net.caffemodel"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with a net, its weights, images and a mean."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(caffe.mode.mode, "python_layers", True)
    Path("net.prototxt").write_text(NET)
    save_weights(load_net("net.prototxt"), "net.caffemodel")
    Path("images").mkdir()
    generator = np.random.default_rng(4)
    for name in ("b.png", "a.png", "c.bmp"):
        cv2.imwrite(f"images/{name}", generator.integers(256, size=(8, 9, 3)).astype(np.uint8))
    np.save("mean.npy", np.array([1.0, 2.0, 3.0]))
    np.save("gray.npy", np.ones((2, 4, 5, 1)))


def scores(crop: np.ndarray, raw_scale: float = 255, swap: bool = True) -> np.ndarray:
    """By hand: of a crop [4, 5, 3] in RGB from 0 to 1."""
    weight, bias = (blob.detach().numpy() for blob in load_net("net.prototxt").params["ip"][:2])
    blob = raw_scale * (crop[:, :, ::-1] if swap else crop).transpose(2, 0, 1)
    return (weight @ (blob - np.array([[[1]], [[2]], [[3]]])).ravel() + bias).astype(np.float32)


def test_a_folder(capfd: Capture) -> None:
    flags = ["-images_dim", "8,9", "-mean_file=mean.npy", "--ext", "png", "-center_only"]
    result = run_well(["classify", "images", "out.npy", *FLAGS, *flags], capfd)
    lines = result.out.splitlines()
    assert lines[:3] == ["CPU mode", "Loading folder: images", "Classifying 2 inputs."]
    assert lines[3].startswith("Done in ") and lines[4] == "Saving results into out.npy"
    images = [caffe.io.load_image(f"images/{name}.png") for name in "ab"]
    expected = np.stack([scores(image[2:6, 2:7]) for image in images])
    assert_close(np.load("out.npy"), expected, "centres")


def test_an_array_with_other_settings(capfd: Capture) -> None:
    images = np.random.default_rng(1).uniform(size=(3, 8, 9, 3))
    np.save("in.npy", images)
    flags = ["--images_dim=8,9", "--mean_file=mean.npy", "--raw_scale=2", "--channel_swap="]
    run_well(["classify", "in.npy", "out", *FLAGS, *flags], capfd)
    crops = caffe.io.oversample(list(images.astype(np.float32)), (4, 5))
    expected = np.stack([scores(crop, 2, False) for crop in crops]).reshape(3, 10, 6).mean(1)
    assert_close(np.load("out.npy"), expected.astype(np.float32), "ten crops")


def test_an_image(capfd: Capture) -> None:
    run_well(["classify", "images/c.bmp", "out.npy", *FLAGS, "--input_scale", "0"], capfd)
    bias = load_net("net.prototxt", weights="net.caffemodel").params["ip"][1]
    assert_close(np.load("out.npy"), bias.detach().numpy()[None], "nothing but the bias")


def test_a_net_for_gray_images(capfd: Capture) -> None:
    Path("net.prototxt").write_text(NET.replace("dim: 2 dim: 3", "dim: 2 dim: 1"))
    net = load_net("net.prototxt")
    save_weights(net, "net.caffemodel")
    weight, bias = (blob.detach().numpy() for blob in net.params["ip"][:2])
    gray = np.random.default_rng(2).integers(256, size=(4, 5)).astype(np.uint8)
    cv2.imwrite("gray.png", gray)
    flags = ["--images_dim=4,5", "--center_only"]
    run_well(["classify", "gray.png", "out.npy", *FLAGS, *flags], capfd)
    assert_close(np.load("out.npy"), (weight @ gray.ravel() + bias)[None], "of gray pixels")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images", "o.npy", *FLAGS, "--ext", "tif"], "images: has no files that end in .tif"),
        (["nowhere.png", "o.npy", *FLAGS], "nowhere.png: cannot be read"),
        (["net.prototxt", "o.npy", *FLAGS], "net.prototxt: is not an image"),
        (["mean.npy", "o.npy", *FLAGS], r"mean.npy: has the shape (3,); [N, H, W, channels]"),
        (["images", "o.npy", *FLAGS, "--mean_file", "net.prototxt"], "is not a .npy file"),
        (["images", "o.npy", *FLAGS, "--images_dim", "8"], "takes 2 whole numbers with commas"),
        (["images", "o.npy", *FLAGS, "--channel_swap", "x"], "takes whole numbers with commas"),
        (["images", "o.npy", *FLAGS, "--channel_swap", "1"], "the order needs 3 entries"),
        (["gray.npy", "o.npy", *FLAGS, "--channel_swap", "0,0,3"], "there is no channel 3 in"),
        (["gray.npy", "o.npy", *FLAGS, "--images_dim", "4,3"], "images of 4 by 3 are smaller"),
        (["gray.npy", "o.npy", *FLAGS], "there is no channel 2 in an image of 1 channels"),
        (["images", "o.npy"], "Missing option '--model_def'"),
        (["images/a.png", "no/o.npy", *FLAGS], "there is no folder no"),
        (["images/a.png", "", *FLAGS], "OUTPUT_FILE is '', which names no file"),
        (["images/a.png", "./", *FLAGS], "OUTPUT_FILE is './', which names no file"),
        (["images/a.png", "images/", *FLAGS], "OUTPUT_FILE is 'images/', which names no file"),
    ],
)
def test_wrong_input(arguments: list[str], message: str, capfd: Capture) -> None:
    assert message in complaint(["classify", *arguments], capfd)
    assert not Path("o.npy").exists()


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("layer { name: 'in' type: 'DummyData' top: 'data' DATA }", "net.prototxt: has no input"),
        ("input: 'data' input_shape { dim: 2 dim: 60 }", "net.prototxt: its input 'data' has the"),
    ],
)
def test_nets_that_take_no_images(definition: str, message: str, capfd: Capture) -> None:
    filled = definition.replace("DATA", "dummy_data_param { shape { dim: 2 dim: 60 } }")
    Path("net.prototxt").write_text(filled + NET[NET.index("layer { name: 'ip'") :])
    assert message in complaint(["classify", "images", "o.npy", *FLAGS], capfd)


def npy_files() -> dict[str, bytes]:
    """Arrays that are damaged or hostile, by what is said of them."""
    file = io.BytesIO()
    np.save(file, np.zeros((1, 8, 9, 3)))
    raw = file.getvalue()
    nan = raw[:-8] + np.float64("nan").tobytes()
    return {
        "(1, 8, 9, 3)|is not a .npy": raw.replace(b"(1, 8, 9, 3)", b"(10**99,)   "),
        "cut|is not a .npy": raw[:-1],
        "more|is not a .npy": raw.replace(b"(1, 8, 9, 3), }    ", b"(100, 999999, 9999)}"),
        "code|is not a .npy": raw.replace(b"(1, 8, 9, 3)", b"exit(3)     "),
        "zip|is not a .npy": b"PK\x03\x04" + bytes(100),
        "objects|is not a .npy": raw.replace(b"<f8", b"|O8"),
        "nan|the array holds nan at [0, 7, 8, 2]": nan,
    }


@pytest.mark.parametrize("case", npy_files())
def test_arrays_that_are_damaged(case: str, capfd: Capture) -> None:
    """A line, and neither memory nor code for what the header claims."""
    Path("in.npy").write_bytes(npy_files()[case])
    said = complaint(["classify", "in.npy", "o.npy", *FLAGS], capfd)
    assert f"in.npy: {case.partition('|')[2]}" in said


def test_an_array_is_no_pipe_that_nobody_writes_into(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PATIENCE", 0.1)
    os.mkfifo("in.npy")
    keeper = os.open("in.npy", os.O_RDWR)
    said = complaint(["classify", "in.npy", "o.npy", *FLAGS], capfd)
    os.close(keeper)
    assert "in.npy: cannot be read: it is a pipe" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capfd: Capture) -> None:
    said = complaint(["classify", "images/a.png", "o.npy", *FLAGS, "--gpu"], capfd)
    assert said == "dns: -gpu 0: no GPU 0; there is none that PyTorch can use"


def test_python_layers_need_the_flag(capfd: Capture) -> None:
    Path("net.prototxt").write_text(
        NET + "layer { name: 'p' type: 'Python' bottom: 'ip' top: 'p' python_param {"
        " module: 'm' layer: 'L' } }"
    )
    arguments = ["classify", "images/a.png", "o.npy", *FLAGS]
    assert "give --allow-python-layers" in complaint(arguments, capfd)
    with fresh_imports():
        assert "no Python module 'm'" in complaint([*arguments, "--allow-python-layers"], capfd)
