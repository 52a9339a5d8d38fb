"""Programs that convert Caffe's models for a chip walk definition and net side by side.

So does Sophgo's tpu-mlir: the definition by protobuf, shapes by the net's blobs after a reshape,
weights by `layer_dict`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

import caffe_dns.pycaffe as caffe
from caffe_dns import load_net
from caffe_dns.pycaffe.proto import caffe_pb2
from caffe_dns.weights import save_weights

MODELS = Path(__file__).parents[2] / "models"
QUICK = {"lenet", "mobilenet_v1", "squeezenet"}
DEPLOYED = [
    pytest.param(path, id=path.parent.name, marks=[] if path.parent.name in QUICK else slow)
    for slow in [pytest.mark.slow]
    for path in sorted(MODELS.glob("*/deploy.prototxt"))
]


@pytest.mark.parametrize("definition", DEPLOYED)
def test_every_blob_and_shape_of_a_deployed_net(definition: Path, tmp_path: Path) -> None:
    weights = tmp_path / "net.caffemodel"
    own = load_net(definition, surgery=False, seed=1)
    save_weights(own, weights)
    net = caffe.Net(str(definition), str(weights), caffe.TEST)
    param = caffe_pb2.NetParameter()
    text_format.Merge(definition.read_text(), param)
    (data,) = net.inputs
    net.blobs[data].reshape(2, *net.blobs[data].shape[1:])
    net.reshape()
    own.reshape({data: tuple(net.blobs[data].shape)})
    for layer in param.layer:
        if any(rule.HasField("phase") and rule.phase != caffe.TEST for rule in layer.include):
            continue
        assert net.layer_dict[layer.name].type == layer.type
        for top in layer.top:
            assert tuple(net.blobs[top].shape) == own.blob_shapes[top]
        blobs = net.layer_dict[layer.name].blobs
        arrays = own.params.get(layer.name, [])
        assert len(blobs) == len(arrays) == len(net.params.get(layer.name, []))
        for blob, array in zip(blobs, arrays, strict=True):
            assert np.array_equal(blob.data, array.detach().numpy())
    assert set(net.outputs) <= {top for layer in param.layer for top in layer.top}
