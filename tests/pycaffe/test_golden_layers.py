"""The recorded layer cases, run as a pycaffe program would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import caffe_dns.pycaffe as caffe
from tests.oracle import GOLDEN, assert_close

CASES = sorted(path.name for path in (GOLDEN / "layers").iterdir())
IN_TRAIN = {"bn_train", "bn_frac", "bn_global_train"}


@pytest.mark.parametrize("name", CASES)
def test_golden_layers(name: str) -> None:
    folder = GOLDEN / "layers" / name
    arrays = dict(np.load(folder / "arrays.npz"))
    text = (folder / "net.prototxt").read_text().replace('"layers/', f'"{GOLDEN}/layers/')
    text += "" if "force_backward" in text else " force_backward: true"
    Path("net.prototxt").write_text(text)
    net = caffe.Net("net.prototxt", caffe.TRAIN if name in IN_TRAIN else caffe.TEST)
    if (folder / "weights.caffemodel").exists():
        net.copy_from(folder / "weights.caffemodel")
    for key, value in arrays.items():
        kind, _, blob = key.partition(":")
        if kind == "in":
            net.blobs[f"{blob}_raw" if f"{blob}_raw" in net.blobs else blob].data[...] = value
    net.forward()
    for key, value in arrays.items():
        kind, _, which = key.partition(":")
        if kind == "top":
            assert_close(net.blobs[which].data, value, f"{name}: {key}")
        elif kind == "topdiff":
            net.blobs[which].diff[...] = value
        elif kind == "param_after":
            assert_close(net.params["layer"][int(which)].data, value, f"{name}: {key}")
    net.backward()
    for key, value in arrays.items():
        kind, _, which = key.partition(":")
        if kind == "bottomdiff":
            assert_close(net.blobs[which].diff, value, f"{name}: {key}")
        elif kind == "paramdiff":
            assert_close(net.params["layer"][int(which)].diff, value, f"{name}: {key}")
