"""A label that is no class is refused with the record that has it."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import lmdb
import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Context
from caffe_dns.layers.python import Python
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import Datum
from tests.nets import input_layer, ip, layer, make_net
from tests.user_code import LAYERS, fresh_imports

#: Of the records, number 7 alone has a label that is no class.
COUNT, WRONG = 10, 7


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = tmp_path / "records"
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        for index in range(COUNT):
            label = 12 if index == WRONG else index % 3
            datum = Datum(channels=1, height=2, width=2, data=bytes(4), label=label)
            transaction.put(f"key{index:02}".encode(), datum.SerializeToString())
    return str(path)


def text(database: str, more: str = "", tail: str = "") -> str:
    return f"""
layer {{ name: "in" type: "Data" top: "data" top: "label"
  data_param {{ source: "{database}" batch_size: 3 backend: LMDB {more} }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param {{ num_output: 4 }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}
{tail}"""


def complaint(net: Net, batches: int = 4) -> str:
    """What one of so many batches ends with."""
    try:
        with pytest.raises(CaffeError) as caught:
            for _ in range(batches):
                net()
    finally:
        net.close()
    return str(caught.value)


def test_a_database_is_named_with_number_and_key(database: str) -> None:
    said = complaint(make_net(text(database)))
    what = "label 12 is out of range; 0 to 3 would be right"
    assert said == f"{database}: layer 'loss': bottom: record 7 (key 'key07'): {what}"


def test_the_label_may_have_several_readers(database: str) -> None:
    accuracy = 'layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "a" }'
    assert "record 7 (key 'key07')" in complaint(make_net(text(database, tail=accuracy)))


def test_of_a_shuffled_database_it_is_the_same_record(database: str) -> None:
    assert "record 7 (key 'key07')" in complaint(make_net(text(database, "shuffle: true")))


def test_batches_that_were_read_together_are_told_apart(database: str) -> None:
    """As with iter_size: the batch behind the wrong one has been read, too."""
    net = make_net(text(database))
    batches = [net.read_sources() for _ in range(5)]
    with pytest.raises(CaffeError, match="record 7 ") as caught:
        for batch in batches:
            net.compute(batch)
    net.close()
    assert "key07" in str(caught.value)


def test_every_rank_names_it(database: str) -> None:
    net = make_net(text(database), context=Context(rank=1, world_size=2))
    assert "record 7 (key 'key07')" in complaint(net)


def test_of_a_list_the_image_is_named(tmp_path: Path) -> None:
    for index in range(3):
        cv2.imwrite(f"{tmp_path}/{index}.png", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "list").write_text(f"{tmp_path}/0.png 0\n{tmp_path}/1.png 9\n{tmp_path}/2.png 1\n")
    source = f'image_data_param {{ source: "{tmp_path}/list" batch_size: 1 }}'
    definition = text("").replace('"Data"', '"ImageData"')
    definition = definition.replace(
        'data_param { source: "" batch_size: 3 backend: LMDB  }', source
    )
    said = complaint(make_net(definition))
    assert said.startswith(f"{tmp_path}/1.png: layer 'loss': bottom: label 9 is out of range")


@pytest.mark.parametrize("shuffle", ["", "shuffle: true"])
def test_of_hdf5_files_the_row_is_named(
    shuffle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a list of words cannot name a folder with a space
    for name, labels in (("a", [0, 1]), ("b", [2, 9, 1])):
        with h5py.File(f"{name}.h5", "w") as file:
            file["data"], file["label"] = np.zeros((len(labels), 4)), labels
    Path("list").write_text("a.h5 b.h5")
    source = f'hdf5_data_param {{ source: "list" batch_size: 2 {shuffle} }}'
    definition = text("").replace('"Data"', '"HDF5Data"')
    definition = definition.replace(
        'data_param { source: "" batch_size: 3 backend: LMDB  }', source
    )
    what = "label 9 is out of range; 0 to 3 would be right"
    said = complaint(make_net(definition))
    assert said == f"b.h5: layer 'loss': bottom: row 1: {what}"


def test_a_label_of_no_record_stays_as_it_is() -> None:
    constant = """
layer { name: "in" type: "DummyData" top: "ip" top: "label" dummy_data_param {
  shape { dim: 2 dim: 4 } shape { dim: 2 } data_filler { value: 0 } data_filler { value: 9 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }"""
    said = complaint(make_net(constant))
    assert said == "layer 'loss': bottom: label 9 is out of range; 0 to 3 would be right"


def test_labels_that_are_images_stay_as_they_are(tmp_path: Path) -> None:
    """The record's own label, which nobody reads, is not to blame."""
    path = tmp_path / "pixels"
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        datum = Datum(channels=1, height=2, width=2, data=bytes([0, 1, 9, 2]), label=12)
        transaction.put(b"key", datum.SerializeToString())
    pixels = f"""
layer {{ name: "in" type: "Data" top: "label"
  data_param {{ source: "{path}" batch_size: 1 backend: LMDB }} }}
layer {{ name: "scores" type: "DummyData" top: "ip" dummy_data_param {{
  shape {{ dim: 1 dim: 4 dim: 2 dim: 2 }} data_filler {{ value: 0 }} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}"""
    said = complaint(make_net(pixels))
    assert said == "layer 'loss': bottom: label 9 is out of range; 0 to 3 would be right"


@pytest.mark.parametrize(
    ("layers", "wrong"),
    [
        (
            layer(
                "c",
                "Convolution",
                "data",
                "c",
                "convolution_param { num_output: 2 kernel_size: 4 }",
            )
            + layer("r", "ReLU", "c", "c"),
            "layer 'c': convolution_param.kernel_size: the kernel (4, 4) is larger than the padded "
            "input (2, 3)",
        ),
        (ip("ip", "data"), "layer 'ip': the weight takes 60 inputs, the bottom has 18"),
        (
            layer("s", "Slice", "data", "a b", "slice_param { axis: 2 slice_point: 3 }"),
            "layer 's': slice_param.slice_point",
        ),
    ],
)
@pytest.mark.parametrize("inner", [False, True])
def test_a_layer_that_a_later_image_does_not_fit(
    layers: str, wrong: str, inner: bool, tmp_path: Path
) -> None:
    for name, size in (("large", (4, 5, 3)), ("small", (2, 3, 3))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros(size, np.uint8))
    (tmp_path / "list").write_text(f"{tmp_path}/large.png 0\n{tmp_path}/small.png 1\n")
    source = f"image_data_param {{ source: '{tmp_path}/list' batch_size: 1 }}"
    net = make_net(layer("in", "ImageData", "", "data label", source) + layers)
    try:
        net.compute(net.read_sources(), inner=inner)
        with pytest.raises(CaffeError) as caught:
            net.compute(net.read_sources(), inner=inner)
    finally:
        net.close()
    assert str(caught.value).startswith(wrong)


def test_users_code_does_not_run_again_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("user.py").write_text(LAYERS)
    times = "python_param { module: 'user' layer: 'Times' param_str: '2' }"
    definition = input_layer(data=(2, 3)) + layer("p", "Python", "data", "p", times)
    with fresh_imports():
        net = make_net(definition, context=Context(allow_python_layers=True))

    def fail(*_: object) -> None:
        raise RuntimeError("cannot be captured")

    monkeypatch.setattr(Python, "run", fail)
    monkeypatch.setattr(Python, "reshape", lambda *_: pytest.fail("the user's code runs"))
    with pytest.raises(RuntimeError, match="cannot be captured"):
        net.compute({"data": torch.ones(2, 3)})
