"""Bottoms without axes or without numbers: a layer takes them, or says so."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import check_shape
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import TRAIN, NetParameter
from caffe_dns.proto.text import read_text
from tests.oracle import GOLDEN

NETS = sorted(path.parent.name for path in GOLDEN.glob("layers/*/net.prototxt"))


def use(param: NetParameter) -> None:
    """Build a net, and compute forward and back."""
    net = Net(param)
    try:
        blobs = net({name: torch.zeros(net.blob_shapes[name]) for name in net.inputs})
        outputs = [blobs[name].sum() for name in net.outputs if blobs[name].requires_grad]
        if outputs:
            torch.stack(outputs).sum().backward()
    finally:
        net.close()


@pytest.mark.parametrize("name", NETS)
def test_empty_bottoms_are_taken_or_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = read_text(GOLDEN / "layers" / name / "net.prototxt", NetParameter).message
    good.state.phase = TRAIN
    use(good)
    for at, layer in enumerate(good.layer):
        for shape in range(len(layer.input_param.shape)):
            dims = list(layer.input_param.shape[shape].dim)
            for changed in ([], [0] * len(dims), [*dims[:-1], 0]):
                param = NetParameter()
                param.CopyFrom(good)
                param.layer[at].input_param.shape[shape].dim[:] = changed
                with suppress(CaffeError):
                    use(param)


@pytest.mark.parametrize("shape", [(0, 2**31), (2**62, 0, 7), (0, 2**20, 2**20)])
def test_extents_that_have_no_strides_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CaffeError, match="2147483647 are the most"):
        check_shape(shape)
    check_shape((0, 2**31 - 1))
