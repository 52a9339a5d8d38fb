"""`dns test` on a net that judges boxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns import load_net
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.text import to_text
from caffe_dns.weights import save_weights
from tests.cli.harness import complaint, run_well
from tests.shapes import MODEL, make_pictures, on_pictures
from tests.solver.test_scores import detection_net
from tests.test_models import randomise


def test_mean_average_precision(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, weights = tmp_path / "net.prototxt", tmp_path / "empty.caffemodel"
    net.write_text(detection_net(tmp_path, monkeypatch))
    weights.write_bytes(NetParameter(layer=[{"name": "other", "type": "ReLU"}]).SerializeToString())
    command = ["test", "-model", str(net), "-weights", str(weights), "-iterations", "2"]
    result = run_well(command, capfd)
    assert f"detection_eval = {(4 + 5 / 9 + 6 / 10) / 18:.6g}" in result.messages
    # Precision 1 at recalls up to 4/6, so from 0 to 0.6; 0.6 up to a recall of 1.
    result = run_well([*command, "--ap_version", "11point"], capfd)
    assert f"detection_eval = {(7 + 4 * 0.6) / 33:.6g}" in result.messages
    said = complaint([*command, "--ap_version", "VOC"], capfd)
    assert "-ap_version: is 'VOC'; 11point, MaxIntegral, Integral would be right" in said


def test_a_detector_made_small(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Folded and shrunk it sees what it saw before; objects are no zeros that could be timed."""
    definition, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    net = load_net(MODEL / "deploy.prototxt", surgery=False)
    randomise(net)
    save_weights(net, weights)
    given = on_pictures("train_val.prototxt", make_pictures(tmp_path), 3)
    definition.write_text(to_text(given))
    command = ["test", "-model", str(definition), "-weights", str(weights), "-iterations", "2"]
    whole = run_well([*command, "--no-surgery"], capfd).messages
    small = run_well([*command, "--fold", "--shrink"], capfd).messages
    assert "Folded into the weights before them: conv1/bn" in "".join(small)
    (expected,) = (line for line in whole if line.startswith("detection_eval = "))
    (actual,) = (line for line in small if line.startswith("detection_eval = "))
    assert float(expected.split()[-1]) > 0
    assert float(actual.split()[-1]) == pytest.approx(float(expected.split()[-1]), rel=1e-3)
