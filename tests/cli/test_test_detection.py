"""`dns test` on a net that judges boxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns.proto.caffe_pb2 import NetParameter
from tests.cli.harness import complaint, run_well
from tests.solver.test_scores import detection_net


def test_mean_average_precision(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    net, weights = tmp_path / "net.prototxt", tmp_path / "empty.caffemodel"
    net.write_text(detection_net(tmp_path))
    weights.write_bytes(NetParameter(layer=[{"name": "other", "type": "ReLU"}]).SerializeToString())
    command = ["test", "-model", str(net), "-weights", str(weights), "-iterations", "2"]
    result = run_well(command, capfd)
    assert f"detection_eval = {(4 + 5 / 9 + 6 / 10) / 18:.6g}" in result.messages
    # Precision 1 at recalls up to 4/6, so from 0 to 0.6; 0.6 up to a recall of 1.
    result = run_well([*command, "--ap_version", "11point"], capfd)
    assert f"detection_eval = {(7 + 4 * 0.6) / 33:.6g}" in result.messages
    said = complaint([*command, "--ap_version", "VOC"], capfd)
    assert "-ap_version: is 'VOC'; 11point, MaxIntegral, Integral would be right" in said
