"""The code of docs/extending.md, run as a user would run it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from caffe_dns.proto.caffe_pb2 import NetParameter
from tests.oracle import assert_close
from tests.processes import run_dns, run_python

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
#: Blocks that begin with the name of a file, by that name.
FILES = {
    match[1]: match[0].split("\n", 1)[1].removesuffix("```")
    for match in re.finditer(r"^```\w*\n# (\S+)\n(?:.*\n)*?```", PAGE, re.MULTILINE)
}
SOLVER = """
net: "net.prototxt" type: "Sign" base_lr: 0.25 lr_policy: "halved" stepsize: 1 max_iter: 2
snapshot_prefix: "extra"
"""
NET = """
layer { name: "data" type: "DummyData" top: "data" top: "wanted"
  dummy_data_param { shape { dim: 1 dim: 2 } shape { dim: 1 dim: 3 }
    data_filler { type: "constant" value: 1 } data_filler { type: "constant" value: 99 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 3 bias_term: false sparsity_term: false
    weight_filler { type: "ramp" min: 0 max: 5 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "wanted" top: "loss" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.split("\n", 1)[1] if name.endswith("txt") else text)
    return tmp_path


def dns(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_dns(arguments, folder)


def test_the_page_has_its_files() -> None:
    assert FILES.keys() == {
        "scaled_tanh.py",
        "net.prototxt",
        "solver.prototxt",
        "scaled_tanh_onnx.py",
        "test_scaled_tanh.py",
        "extras.py",
    }
    assert len(FILES["scaled_tanh.py"].splitlines()) < 60


def test_a_layer_type_of_a_user(folder: Path) -> None:
    (command,) = re.findall(r"^dns (train .*)$", PAGE, re.MULTILINE)
    done = dns(folder, *command.split())
    assert done.returncode == 0, done.stderr
    assert (folder / "curve_iter_3.caffemodel").exists()

    without = dns(folder, *command.split(" --import")[0].split())
    assert without.returncode == 1
    assert "net.prototxt:7: layer 'tanh': unknown layer type 'ScaledTanh'" in without.stderr


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ('{"stepness": 1}', "extension_param.settings: 'stepness' is unknown (did you mean"),
        ('{"steepness": "2"}', "'steepness' takes a float, not '2'"),
        ("{steepness: 2}", "extension_param.settings: is not JSON"),
        ("[2]", "a JSON object would be right, not [2]"),
    ],
)
def test_wrong_settings(folder: Path, settings: str, wanted: str) -> None:
    net = folder / "net.prototxt"
    net.write_text(net.read_text().replace('{"steepness": 2.5}', settings))
    done = dns(folder, "summary", "--model", "net.prototxt", "--import", "scaled_tanh")
    assert done.returncode == 1
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr


def test_other_types_take_no_settings(folder: Path) -> None:
    (folder / "net.prototxt").write_text(
        FILES["net.prototxt"].replace("ScaledTanh", "TanH").replace("# net.prototxt\n", "")
    )
    done = dns(folder, "summary", "--model", "net.prototxt")
    assert done.returncode == 1
    assert "layer 'tanh': extension_param: type TanH takes none" in done.stderr


def test_its_test(folder: Path) -> None:
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_scaled_tanh.py"]
    # What else is installed may warn, which is an error here.
    done = run_python(*words, folder=folder, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_layer_type_of_a_user_in_onnx(folder: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    train, export = re.findall(r"^dns (.*)$", PAGE, re.MULTILINE)
    for command in (train, export):
        done = dns(folder, *command.split())
        assert done.returncode == 0, done.stderr
    model = NetParameter()
    model.ParseFromString((folder / "curve_iter_3.caffemodel").read_bytes())
    (scale,) = next(layer for layer in model.layer if layer.name == "tanh").blobs[0].data
    data = np.random.default_rng(0).normal(size=(1, 3)).astype(np.float32)
    (top,) = onnxruntime.InferenceSession(folder / "curve.onnx").run(None, {"data": data})
    assert_close(top, (scale * np.tanh(2.5 * data.astype(np.float64))).astype(np.float32), "top")


def test_a_filler_a_policy_a_rule_and_a_format(folder: Path) -> None:
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text(SOLVER)
    done = dns(folder, "train", "--solver", "solver.prototxt", "--import", "extras")
    assert done.returncode == 0, done.stderr
    model, weights, output = "net.prototxt", "extra_iter_2.caffemodel", "w.numbers"
    options = ["--model", model, "--weights", weights, "--output", output, "--import", "extras"]
    done = dns(folder, "export", *options, "--shape", "2")
    assert done.returncode == 0, done.stderr
    # Every output is far below 99, so that each of two iterations adds the rate to each weight.
    wanted = [start + 0.25 + 0.125 for start in range(6)]
    assert [float(line) for line in (folder / output).read_text().split()] == wanted


def test_modules_that_fail(folder: Path) -> None:
    (folder / "broken.py").write_text("x = 1\nraise OSError('no licence')\n")
    for module, wanted in [
        ("broken", "broken.py:2: importing 'broken' raised OSError: no licence"),
        ("missing", "there is no Python module 'missing' in the current folder"),
    ]:
        done = dns(folder, "train", "--solver", "solver.prototxt", "--import", module)
        assert done.returncode == 1
        assert wanted in done.stderr
        assert "Traceback" not in done.stderr


def test_a_plugin_that_is_installed(folder: Path) -> None:
    info = folder / "tanh_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tanh-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[caffe_dns.plugins]\ntanh = scaled_tanh\n")
    done = dns(folder, "train", "--solver", "solver.prototxt")
    assert done.returncode == 0, done.stderr
    (folder / "scaled_tanh.py").write_text("import nothing_of_this_name\n")
    done = dns(folder, "train", "--solver", "solver.prototxt")
    assert done.returncode == 1
    assert "the plugin 'tanh' of tanh-plugin fails: " in done.stderr
    assert "Traceback" not in done.stderr
