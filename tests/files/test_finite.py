"""Values that are not finite, in every kind of file that brings numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_dns.data.datum import parse_datum
from caffe_dns.data.transform import Transform
from caffe_dns.errors import CaffeError
from caffe_dns.files.finite import check_finite
from caffe_dns.proto.blobs import blob_to_array
from caffe_dns.proto.caffe_pb2 import (
    TEST,
    BlobProto,
    BlobShape,
    Datum,
    NetParameter,
    SolverState,
    TransformationParameter,
)
from caffe_dns.solver.state_file import read_state
from caffe_dns.weights import load_weights
from tests.nets import input_layer, layer, make_net

BAD = [float("nan"), float("inf"), -float("inf")]


def blob(value: float, *shape: int) -> BlobProto:
    made = BlobProto(shape=BlobShape(dim=shape), data=[1.0] * int(np.prod(shape)))
    made.data[3] = value
    return made


@pytest.mark.parametrize("value", BAD)
def test_says_where(value: float) -> None:
    with pytest.raises(CaffeError, match=rf"it holds {value} at \[1, 1\]; it must be finite"):
        check_finite(np.array([[1, 2], [3, value]]), "it")
    check_finite(np.array([[1, 2], [3, 3e38]]), "it")
    check_finite(np.empty((0, 2)), "it")


@pytest.mark.parametrize("value", BAD)
def test_blobs(value: float) -> None:
    with pytest.raises(CaffeError, match=rf"history 5 holds {value} at \[0, 3\]"):
        blob_to_array(blob(value, 2, 4), "history 5")


@pytest.mark.parametrize("value", BAD)
def test_weights(tmp_path: Path, value: float) -> None:
    net = make_net(
        input_layer(data=(2, 4))
        + layer("ip", "InnerProduct", "data", "ip", "inner_product_param { num_output: 2 }")
    )
    model = NetParameter()
    model.layer.add(name="ip", type="InnerProduct").blobs.extend(
        [blob(value, 2, 4), BlobProto(shape=BlobShape(dim=[2]), data=[0, 0])]
    )
    file = tmp_path / "a.caffemodel"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(CaffeError) as caught:
        load_weights(net, str(file))
    assert f"a.caffemodel: layer 'ip': blob 0 holds {value} at [0, 3]" in str(caught.value)


@pytest.mark.parametrize("value", BAD)
def test_states(tmp_path: Path, value: float) -> None:
    state = SolverState(iter=3, history=[blob(1, 4), blob(value, 4)])
    file = tmp_path / "a.solverstate"
    file.write_bytes(state.SerializeToString())
    with pytest.raises(CaffeError, match=rf"a\.solverstate: history 1 holds {value}"):
        read_state(str(file))


@pytest.mark.parametrize("value", BAD)
def test_means(tmp_path: Path, value: float) -> None:
    file = tmp_path / "mean.binaryproto"
    file.write_bytes(blob(value, 1, 1, 2, 4).SerializeToString())
    with pytest.raises(CaffeError, match=r"mean_file: .*mean\.binaryproto: the mean holds"):
        Transform(TransformationParameter(mean_file=str(file)), TEST)


@pytest.mark.parametrize("value", BAD)
def test_records(value: float) -> None:
    datum = Datum(channels=1, height=2, width=2, float_data=[1, value, 2, 3])
    with pytest.raises(CaffeError, match="float_data of a record holds"):
        parse_datum(datum.SerializeToString()).image()


def test_blobs_of_more_axes_than_caffe_has() -> None:
    with pytest.raises(CaffeError, match="has 65 axes"):
        blob_to_array(BlobProto(shape=BlobShape(dim=[1] * 65), data=[1.0]))
