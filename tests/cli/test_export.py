"""`dns export`, `dns deploy` and `dns summary` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns import load_net
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.text import read_binary, read_text
from caffe_dns.weights.compact import is_compact
from tests.cli.harness import complaint, run_well
from tests.oracle import GOLDEN, OFFICIAL

RUN = GOLDEN / "runs" / "sgd_inv"
WEIGHTS = str(RUN / "snap_iter_20.caffemodel")
MODEL = ["--model", str(RUN / "train_val.prototxt"), "--shape", "1,28,28"]
EXPORT = ["export", *MODEL, "--weights", WEIGHTS]
Capture = pytest.CaptureFixture[str]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_caffemodel_with_its_definition(tmp_path: Path, capfd: Capture) -> None:
    model, definition = tmp_path / "out.caffemodel", tmp_path / "deploy.prototxt"
    result = run_well([*EXPORT, "-output", str(model), "--definition", str(definition)], capfd)
    net = load_net(definition, weights=model)
    assert net.outputs == ["prob"]
    assert net.blob_shapes["prob"] == (1, 10)
    lines = result.out.splitlines()
    assert len(lines) == 5
    assert lines[-1] == f"Wrote {model}: {model.stat().st_size:,} bytes"
    assert lines[0].startswith("given: snap_iter_20.caffemodel ")
    assert f"{Path(WEIGHTS).stat().st_size:,} bytes" in lines[0]
    weights = sum(blob.numel() for blobs in net.params.values() for blob in blobs[:2])
    assert lines[1].startswith(f"dense: {weights:,} values of 4 bytes ")
    assert f" {4 * weights:,} bytes" in lines[1]
    assert result.err == ""


def test_to_compact_and_back(tmp_path: Path, capfd: Capture) -> None:
    small, dense, again = (tmp_path / name for name in ("a.dnsz", "a.caffemodel", "b.caffemodel"))
    result = run_well([*EXPORT, "--output", str(small)], capfd)
    run_well([*EXPORT, "--output", str(dense)], capfd)
    definition = str(tmp_path / "b.prototxt")
    back = ["export", "--weights", str(small), "--output", str(again), "--definition", definition]
    run_well(back, capfd)
    assert again.read_bytes() == dense.read_bytes()
    read = read_text(definition, NetParameter).message
    assert [layer.name for layer in read.layer] == [
        layer.name for layer in read_binary(dense, NetParameter).layer
    ]
    assert f"{small.stat().st_size:,} bytes" in result.out.splitlines()[3]


def test_formats_by_name(tmp_path: Path, capfd: Capture) -> None:
    file = tmp_path / "model.bin"
    run_well([*EXPORT, "--output", str(file), "--format", "compact"], capfd)
    assert is_compact(file)
    assert "known: caffemodel, onnx, safetensors, compact" in complaint(
        [*EXPORT, "--output", str(file), "--format", "zip"], capfd
    )


@pytest.mark.parametrize("ending", ["onnx", "safetensors"])
def test_formats_of_other_packages(ending: str, tmp_path: Path, capfd: Capture) -> None:
    pytest.importorskip(ending, reason=f"needs the package {ending}")
    file = tmp_path / f"model.{ending}"
    run_well([*EXPORT, "--output", str(file)], capfd)
    assert file.stat().st_size > 1000


@pytest.mark.parametrize(("ending", "package"), [("onnx", "onnx"), ("safetensors", "safetensors")])
def test_missing_packages(
    ending: str, package: str, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    monkeypatch.setitem(__import__("sys").modules, f"{package}.numpy", None)
    line = complaint([*EXPORT, "--output", str(tmp_path / f"x.{ending}")], capfd)
    assert f"pip install 'caffe-dns[{ending}]'" in line
    assert not names(tmp_path)


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the official models are not here")
def test_official_lenet(tmp_path: Path, capfd: Capture) -> None:
    weights = str(OFFICIAL / "caffe_lenet5_sparse.caffemodel")
    model = ["--model", str(OFFICIAL / "lenet5.prototxt"), "--weights", weights]
    result = run_well(["export", *model, "--output", str(tmp_path / "lenet.dnsz")], capfd)
    assert "pruned: 3,993 of them not zero" in result.out
    assert (tmp_path / "lenet.dnsz").stat().st_size < 20_000
    result = run_well(["summary", *model], capfd)
    assert "3,993 of 431,080 parameters are left: 0.93 %, 108.0 times fewer" in result.out


def test_wrong_input_of_export(tmp_path: Path, capfd: Capture) -> None:
    out = ["--output", str(tmp_path / "x.caffemodel")]

    def said(*arguments: str) -> str:
        return complaint(["export", *arguments], capfd)

    assert "--weights" in said(*MODEL, *out)
    assert "--output" in said(*MODEL, "--weights", WEIGHTS)
    assert "--model" in said("--weights", WEIGHTS, *out)
    # Before the weights are read, of which something is wrong, too.
    line = said(*MODEL, "--weights", "gone", *out, "--definition", str(tmp_path / "no" / "x"))
    assert "cannot be written: there is no folder" in line
    assert "does not name a format" in said(*MODEL, "--weights", WEIGHTS, "--output", "model.bin")
    assert "No such file" in said(*MODEL, "--weights", "gone.caffemodel", *out)
    assert "there is no such file" in said("--model", "gone.prototxt", "--weights", WEIGHTS, *out)
    for batch in ("0", "2147483648"):
        assert "--batch" in said(*MODEL, "--weights", WEIGHTS, *out, "--batch", batch)
    assert "--shape '1,x'" in said(
        "--model", MODEL[1], "--shape", "1,x", "--weights", WEIGHTS, *out
    )
    assert "there is no folder" in said(
        *MODEL, "--weights", WEIGHTS, "--output", str(tmp_path / "gone" / "x.dnsz")
    )
    wrong = said(*MODEL[:3], "1,32,32", "--weights", WEIGHTS, *out)
    assert "layer 'ip" in wrong
    assert "shape mismatch" in wrong
    assert not names(tmp_path)


def test_damaged_and_misplaced_compact_files(tmp_path: Path, capfd: Capture) -> None:
    small = tmp_path / "a.dnsz"
    run_well([*EXPORT, "--output", str(small)], capfd)
    back = ["export", "--weights", str(small), "--output", str(tmp_path / "b.caffemodel")]
    assert "leave --model out" in complaint([*back, *MODEL], capfd)
    raw = bytearray(small.read_bytes())
    raw[len(raw) // 2] ^= 4
    small.write_bytes(raw)
    assert "a.dnsz: is damaged: its checksum" in complaint(back, capfd)
    assert names(tmp_path) == {"a.dnsz"}


def test_deploy(tmp_path: Path, capfd: Capture) -> None:
    file = tmp_path / "deploy.prototxt"
    result = run_well(["deploy", *MODEL, "--output", str(file), "--batch", "6"], capfd)
    assert "has to come as the layer" in result.out
    assert f"Wrote {file}: " in result.out
    net = load_net(file, weights=WEIGHTS)
    assert net.blob_shapes["prob"] == (6, 10)


def test_remarks_tell_the_terminal_nothing(tmp_path: Path, capfd: Capture) -> None:
    model = tmp_path / "net.prototxt"
    data = "transform_param { scale: 2 } data_param { source: 'none' batch_size: 1 }"
    ip = "type: 'InnerProduct' bottom: 'x' top: 'y' inner_product_param { num_output: 2 }"
    text = f"layer {{ name: 'a\\033[2Jb' type: 'Data' top: 'x' {data} }} layer {{ name: 'y' {ip} }}"
    model.write_text(text)
    words = ["deploy", "--model", str(model), "--shape", "1,2,2", "--output", f"{tmp_path}/out"]
    said = run_well(words, capfd).out
    assert r"as the layer 'a\x1b[2Jb' made it: scale: 2" in said and "\x1b" not in said


def test_wrong_input_of_deploy(tmp_path: Path, capfd: Capture) -> None:
    out = ["--output", str(tmp_path / "x.prototxt")]
    assert "--model" in complaint(["deploy", *out], capfd)
    assert "--output" in complaint(["deploy", *MODEL], capfd)
    # The database is not where the definition says.
    line = complaint(["deploy", *MODEL[:2], *out], capfd)
    assert "there is no such database" in line
    assert "--shape 3,227,227" in line
    assert not names(tmp_path)


def test_summary(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    model = str(RUN / "train_val.prototxt")
    train = run_well(["summary", "--model", model, "--phase", "TRAIN"], capfd).out
    test = run_well(["summary", "--model", model, "--weights", WEIGHTS], capfd).out
    assert "32x1x28x28" in train
    assert "50x1x28x28" in test
    assert "Accuracy" in test
    assert "kept" in test
    assert "kept" not in train
    assert max(map(len, test.splitlines())) <= 100


def test_wrong_input_of_summary(tmp_path: Path, capfd: Capture) -> None:
    assert "--model" in complaint(["summary"], capfd)
    assert "--phase" in complaint(["summary", *MODEL, "--phase", "test"], capfd)
    assert "gone.caffemodel" in complaint(
        ["summary", *MODEL, "--weights", "gone.caffemodel"], capfd
    )
    assert "1 data layer" in complaint(["summary", *MODEL, "--shape", "1,28,28"], capfd)
    assert "--shape '3,x'" in complaint(["summary", *MODEL, "--shape", "1,28,28:3,x"], capfd)


SEGMENTATION = """layer { name: "d" type: "Data" top: "data" top: "label"
  data_param { source: "gone" batch_size: 2 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "conv" bottom: "label" top: "loss" }
"""


def test_shapes_of_labels(tmp_path: Path, capfd: Capture) -> None:
    file = tmp_path / "net.prototxt"
    file.write_text(SEGMENTATION)
    command = ["summary", "--model", str(file), "--shape"]
    out = run_well([*command, "3,8,6:1,8,6"], capfd).out
    assert "1x1x8x6" in out
    assert f"{file}:5: layer 'loss': " in complaint([*command, "3,8,6"], capfd)
    assert "3 shapes given for 2 top(s)" in complaint([*command, "3,8,6:1:1"], capfd)


def test_shapes_of_inputs_that_have_none(tmp_path: Path, capfd: Capture) -> None:
    file = tmp_path / "net.prototxt"
    file.write_text(
        'layer { name: "in" type: "Input" top: "data" }\n'
        'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"\n'
        "  inner_product_param { num_output: 3 } }"
    )
    command = ["summary", "--model", str(file)]
    assert "1x4" in run_well([*command, "--shape", "4"], capfd).out
    assert "input 'data' has no shape" in complaint(command, capfd)


@pytest.mark.parametrize("action", ["summary", "deploy", "export"])
def test_errors_have_their_line(action: str, tmp_path: Path, capfd: Capture) -> None:
    file = tmp_path / "net.prototxt"
    file.write_text(SEGMENTATION.replace("kernel_size: 1", "kernel_size: 9"))
    more = ["--output", f"{tmp_path}/x.onnx", "--weights", WEIGHTS] if action == "export" else []
    more += ["--output", f"{tmp_path}/y"] if action == "deploy" else []
    arguments = [action, "--model", str(file), "--shape", "3,8,6:1,8,6", *more]
    line = 4  # that of the setting
    if action == "deploy":  # which builds no net, but knows types
        line = 3
        file.write_text(SEGMENTATION.replace('"Convolution"', '"Convolutoin"'))
    assert f"{file}:{line}: layer 'conv': " in complaint(arguments, capfd)
