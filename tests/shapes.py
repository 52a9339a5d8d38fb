"""Databases of drawn shapes, for tests of detectors."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns.cli.main import main
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.upgrade import read_net
from tools.shapes import write_shapes

MODEL = Path(__file__).parents[1] / "models" / "ssd_shapes"


def make_pictures(folder: Path, count: int = 6, seed: int = 1) -> Path:
    """An LMDB of so many pictures in this folder; returns its path."""
    write_shapes(folder, {"few": count}, seed)
    arguments = ("--anno_type=detection", f"--label_map_file={folder}/labelmap.prototxt")
    files = (f"{folder}/", f"{folder}/few.txt", f"{folder}/lmdb")
    with pytest.raises(SystemExit) as caught:
        main(["convert_annoset", *arguments, "--encoded", *files])
    assert caught.value.code == 0
    return folder / "lmdb"


def on_pictures(file: str, pictures: Path, batch: int) -> NetParameter:
    """A definition of models/ssd_shapes on these pictures."""
    net: NetParameter = read_net(MODEL / file).message
    for layer in net.layer:
        if layer.type == "AnnotatedData":
            layer.data_param.source, layer.data_param.batch_size = str(pictures), batch
    return net
