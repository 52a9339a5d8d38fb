"""Blobs as Datums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from caffe_dns import CaffeError, load_net
from caffe_dns.export.features import check_blobs, feature_datums


@pytest.mark.parametrize(
    ("shape", "datum_shape", "count"),
    [
        ((2, 3, 4, 5), (3, 4, 5), 2),
        ((2, 3, 4), (3, 4, 1), 2),
        ((3, 2), (2, 1, 1), 3),
        ((4,), (1, 1, 1), 4),
        ((), (1, 1, 1), 1),
    ],
)
def test_shapes(shape: tuple[int, ...], datum_shape: tuple[int, ...], count: int) -> None:
    blob = torch.randn(shape)
    datums = list(feature_datums(blob))
    assert len(datums) == count
    assert {(d.channels, d.height, d.width) for d in datums} == {datum_shape}
    values = torch.tensor([list(d.float_data) for d in datums])
    assert torch.equal(values.reshape(shape), blob)


def test_blobs_that_cannot_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(
        'layer { name: "in" type: "Input" top: "a" top: "b" input_param {'
        " shape { dim: 2 dim: 3 dim: 1 dim: 1 } shape { dim: 2 dim: 3 dim: 1 dim: 1 dim: 1 } } }"
    )
    net = load_net(path)
    check_blobs(net, ["a"], "net.prototxt")
    with pytest.raises(CaffeError, match="'b' has 5 axes"):
        check_blobs(net, ["a", "b"], "net.prototxt")
    with pytest.raises(CaffeError, match="Unknown feature blob name c"):
        check_blobs(net, ["c"], "net.prototxt")
