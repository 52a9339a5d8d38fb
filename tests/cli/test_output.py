"""`--quiet` and `--json`: the result alone, for people and for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from caffe_dns.cli.actions import device_query
from caffe_dns.cli.output import Output
from caffe_dns.device.cuda_driver import Attribute
from caffe_dns.profile.timing import PassTimer
from caffe_dns.reports.sensitivity import SHARES
from tests.cli.harness import run_well

Capture = pytest.CaptureFixture[str]
MODEL = ["--model", "runs/surgery_holmes/train_val.prototxt"]
WEIGHTS = ["--weights", "runs/surgery_holmes/snap_iter_40.caffemodel"]


@pytest.fixture(autouse=True)
def quick(in_golden_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PassTimer, "LEAST_MILLISECONDS", 0.0)


def told(arguments: list[str], capture: Capture) -> tuple[Any, str]:
    """What a command says as JSON and quietly; nothing goes to stderr."""
    as_json, quiet = (run_well([*arguments, flag], capture) for flag in ("--json", "--quiet"))
    assert as_json.err == quiet.err == ""
    return json.loads(as_json.out), quiet.out


def test_test(capfd: Capture) -> None:
    arguments = ["test", *MODEL, *WEIGHTS, "-iterations", "2"]
    result, text = told(arguments, capfd)
    logged = run_well(arguments, capfd).messages
    lines = text.splitlines()
    assert lines == logged[-len(lines) :] and lines[0].startswith("Loss: ")
    assert list(result) == ["iterations", "loss", "outputs", "layers_kept"]
    assert result["iterations"] == 2
    assert f"Loss: {result['loss']:.6g}" == lines[0]
    assert f"accuracy = {result['outputs']['accuracy']:.6g}" in lines
    kept = {entry["name"]: entry for entry in result["layers_kept"]}
    assert f"Kept conv1: {kept['conv1']['kept']} of {kept['conv1']['total']} " in text


def test_time(capfd: Capture) -> None:
    result, text = told(["time", *MODEL, "-iterations", "2"], capfd)
    assert "Batch size: " in text and "Average" not in text
    names = [layer["name"] for layer in result["layers"]]
    assert {"conv1", "ip2", "loss"} <= set(names)
    forward = sum(layer["forward"] for layer in result["layers"])
    assert result["forward_ms"] == pytest.approx(forward)
    assert result["forward_backward_ms"] > 0 and result["whole_pass_ms"] > 0
    assert result["iterations"] == 2 and result["batch_size"] == 32
    assert result["peak_bytes"] is None
    assert result["layers"][names.index("conv1")]["memory"]["parameters"] > 0


def test_summary(capfd: Capture) -> None:
    arguments = ["summary", *MODEL, *WEIGHTS]
    result, text = told(arguments, capfd)
    assert text == run_well(arguments, capfd).out
    (conv1,) = (layer for layer in result["layers"] if layer["name"] == "conv1")
    assert conv1["type"] == "Convolution" and conv1["shapes"][0][1:] == [8, 24, 24]
    for name in ("parameters", "kept", "macs", "macs_kept"):
        assert result[name] == sum(layer[name] for layer in result["layers"])
    assert f"{result['kept']:,} of {result['parameters']:,} parameters" in text


def test_summary_without_weights(capfd: Capture) -> None:
    """Nothing is known of what is kept."""
    result, text = told(["summary", *MODEL], capfd)
    assert result["parameters"] > 0 and "kept" not in text
    assert not any("kept" in name for row in (result, *result["layers"]) for name in row)


def test_export(tmp_path: Path, capfd: Capture) -> None:
    file = tmp_path / "m.caffemodel"
    arguments = ["export", *MODEL, *WEIGHTS, "--output", str(file)]
    result, text = told(arguments, capfd)
    assert text == run_well(arguments, capfd).out
    assert result["file"] == str(file) and result["format"] == "caffemodel"
    assert result["bytes"] == file.stat().st_size and result["definition"] is None
    assert 0 < result["weights_kept"] < result["weights"]


def test_sensitivity(capfd: Capture) -> None:
    arguments = ["sensitivity", *MODEL, *WEIGHTS, "-iterations", "1", "--layers", "ip2"]
    result, text = told(arguments, capfd)
    assert text == run_well(arguments, capfd).out
    (curve,) = result["study"]["curves"]
    assert [point["share"] for point in curve["points"]] == list(SHARES)
    assert curve["layer"] == "ip2" and curve["setting"] == "threshold"
    assert list(result["proposal"]["points"]) == ["ip2"] and result["files"] == []


def test_device_query(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(major=9, minor=0, name="NVIDIA H100", total_memory=85_000_000_000)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: properties)
    monkeypatch.setattr(
        device_query, "device_attributes", lambda gpu: {one: int(one) for one in Attribute}
    )
    (result,), text = told(["device_query", "-gpu", "0"], capfd)
    assert result["name"] == "NVIDIA H100" and result["total_global_memory"] == 85_000_000_000
    assert "Name:                          NVIDIA H100\n" in text


def test_what_json_does_not_have(capfd: Capture) -> None:
    Output(as_json=True).result({"a": math.nan, "b": (1, math.inf), 3: [None, True]})
    assert json.loads(capfd.readouterr().out) == {"a": None, "b": [1, None], "3": [None, True]}
    Output().result({"a": 1})
    assert capfd.readouterr().out == ""
