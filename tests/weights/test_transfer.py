"""Models between files and nets: matching by name, shapes old and new, masks of every fork."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from caffe_dns import load_net
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Context
from caffe_dns.net import Net
from caffe_dns.proto.blobs import array_to_blob, blob_to_array
from caffe_dns.proto.caffe_pb2 import BlobProto, NetParameter
from caffe_dns.weights import (
    copy_trained_layers,
    load_definition_blobs,
    load_weights,
    save_weights,
)
from tests.nets import input_layer, ip, layer, make_net, parse_net, recorded_log
from tests.oracle import GOLDEN

DATA = input_layer(data=(2, 3, 5, 4))
NORM = layer("bn", "BatchNorm", "data", "bn")
TEXT = DATA + NORM + ip("a", "bn") + layer("prelu", "PReLU", "a", "a") + ip("b", "a") + ip("c", "a")
ENDINGS = [".caffemodel", ".caffemodel.h5"]


def plain(text: str = TEXT) -> Net:
    return make_net(text, context=Context(surgery=False))


def randomize(net: Net, seed: int) -> Net:
    """Fill all blobs but masks with numbers, and masks with zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    for param in net.learnable_params:
        values = torch.rand(param.tensor.shape, generator=generator)
        param.tensor.data.copy_((values > 0.4).float() if param.is_mask else values)
    return net


def saved(net: Net, folder: Path) -> NetParameter:
    """The net as its .caffemodel has it."""
    save_weights(net, folder / "saved")
    return NetParameter.FromString((folder / "saved").read_bytes())


def values(net: Net) -> dict[str, np.ndarray]:
    return {
        f"{name}/{index}": blob.detach().numpy().copy()
        for name, blobs in net.params.items()
        for index, blob in enumerate(blobs)
    }


def assert_equal(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[key], array) for key, array in expected.items())


def write(path: Path, **layers: list[np.ndarray] | list[BlobProto]) -> str:
    """A model with these blobs."""
    param = NetParameter()
    for name, blobs in layers.items():
        entry = param.layer.add(name=name)
        for blob in blobs:
            entry.blobs.append(blob if isinstance(blob, BlobProto) else array_to_blob(blob))
    path.write_bytes(param.SerializeToString())
    return str(path)


def complaint(net: Net, file: str) -> str:
    with pytest.raises(CaffeError) as caught:
        load_weights(net, file)
    message = str(caught.value)
    assert "\n" not in message
    return message


# There and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("surgery", [False, True])
def test_there_and_back(tmp_path: Path, ending: str, surgery: bool) -> None:
    net = randomize(make_net(TEXT, context=Context(surgery=surgery)), 1)
    file = str(tmp_path / f"m{ending}")
    save_weights(net, file, hdf5=ending.endswith("h5"))
    other = randomize(make_net(TEXT, context=Context(surgery=surgery)), 2)
    load_weights(other, file)
    assert_equal(values(other), values(net))


def test_a_model_is_the_net_with_its_splits(tmp_path: Path) -> None:
    net = plain("name: 'n' " + TEXT)
    param = saved(net, tmp_path)
    names = [entry.name for entry in param.layer]
    assert (param.name, names) == ("n", ["in", "bn", "a", "prelu", "a_prelu_0_split", "b", "c"])
    assert list(param.layer[5].bottom) == ["a_prelu_0_split_0"]
    assert param.layer[0].phase == net.phase
    assert [list(blob.shape.dim) for blob in param.layer[2].blobs] == [[5, 60], [5]]
    assert not param.layer[2].blobs[0].diff


@pytest.mark.parametrize("name", ["name: 'n' ", ""])
def test_a_model_has_the_bytes_that_protobuf_writes(tmp_path: Path, name: str) -> None:
    """Also where fields stand in front of the blobs and behind them."""
    bias = "Bias", "b", "b", "bias_param { num_axes: 0 }"
    net = randomize(plain(name + TEXT + layer("one", *bias)), 1)
    for step in net.steps:
        step.layer.param.propagate_down[:] = [True] * len(step.bottoms)
    written = saved(net, tmp_path)
    assert written.SerializeToString() == (tmp_path / "saved").read_bytes()
    for entry, step in zip(written.layer, net.steps, strict=True):
        arrays = [blob_to_array(blob) for blob in entry.blobs]
        assert [a.tolist() for a in arrays] == [b.tolist() for b in step.layer.blobs]
        del entry.blobs[:]
        assert entry == step.layer.param


def test_a_model_is_written_from_where_its_numbers_are(tmp_path: Path) -> None:
    net = plain(
        input_layer(x=(2, 1000)) + ip("a", "x").replace("num_output: 5", "num_output: 2000")
    )
    tracemalloc.start()
    try:
        save_weights(net, tmp_path / "m")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # of weights of 8 MB
    finally:
        tracemalloc.stop()
    assert (tmp_path / "m").stat().st_size > 8_000_000


@pytest.mark.parametrize("run", ["sgd_inv", "bn_inception", "siamese_shared"])
def test_fields_of_a_model_are_caffes(
    run: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(GOLDEN)
    ours = saved(load_net(f"runs/{run}/train_val.prototxt", "TRAIN", surgery=False), tmp_path)
    model = Path(f"runs/{run}/snap_iter_40.caffemodel").read_bytes()
    theirs = NetParameter.FromString(model)
    for entry in (*ours.layer, *theirs.layer):
        del entry.blobs[:]
    assert ours == theirs


@pytest.mark.parametrize("ending", ENDINGS)
def test_diffs_are_written_where_they_are_given(tmp_path: Path, ending: str) -> None:
    text = input_layer(x=(2, 6), y=(2, 6)) + ip("a", "x", "param { name: 'w' }")
    text += ip("b", "y", "param { name: 'w' share_mode: PERMISSIVE }").replace(
        "num_output: 5", "num_output: 5 transpose: true"
    )
    net = plain(text)
    diffs = {p: torch.rand(p.tensor.shape) for p in net.learnable_params}
    file = tmp_path / f"m{ending}"
    save_weights(net, file, hdf5=ending.endswith("h5"), diffs=diffs)
    expected = {
        f"{step.layer.name}/{i}": diffs[net.table.owner(step.layer, i)].reshape(blob.shape)
        for step in net.steps
        for i, blob in enumerate(step.layer.blobs)
    }
    if ending.endswith("h5"):
        with h5py.File(file) as root:
            found = {key: root["diff"][key][()] for key in expected}
            assert "1" in root["data/b"]
            assert "0" not in root["data/b"]  # shared
    else:
        model = NetParameter.FromString(file.read_bytes())
        found = {
            f"{entry.name}/{i}": np.array(blob.diff, np.float32).reshape(list(blob.shape.dim))
            for entry in model.layer
            for i, blob in enumerate(entry.blobs)
        }
    assert len(expected) == 4
    for key, diff in expected.items():
        np.testing.assert_array_equal(found[key], diff.numpy())


# By name and shape --------------------------------------------------------------------------------


def test_layers_are_matched_by_name(tmp_path: Path) -> None:
    net = randomize(plain(), 1)
    before = values(net)
    weight, bias = np.full((5, 60), 3, np.float32), np.full(5, 4, np.float32)
    file = write(tmp_path / "m", stranger=[weight], a=[weight, bias], other=[])
    with recorded_log() as messages:
        load_weights(net, file)
    assert messages == ["Ignoring source layer stranger", "Ignoring source layer other"]
    assert_equal(values(net), {**before, "a/0": weight, "a/1": bias})


def test_several_files_one_after_the_other(tmp_path: Path) -> None:
    ones, twos, bias = (np.full(s, v, np.float32) for s, v in (((5, 60), 1), ((5, 60), 2), (5, 3)))
    first = write(tmp_path / "first", a=[ones, bias])
    second = write(tmp_path / "second", a=[twos, bias])
    net = plain()
    load_weights(net, f"{second}, {first} ")
    assert (net.params["a"][0] == 1).all()
    assert "has an empty name in it" in complaint(net, f"{first},,{second}")


@pytest.mark.parametrize(
    ("shapes", "wanted"),
    [
        (
            [(5, 61), (5,)],
            "param 0 weights; shape mismatch. Source param shape is 5 61 (305); target",
        ),
        (
            [(60, 5), (5,)],
            "target param shape is 5 60 (300). To learn this layer's parameters from",
        ),
        ([(5, 60), (1, 1, 1, 5)], "param 1 weights; shape mismatch. Source param shape is 1 1 1 5"),
        ([(5, 60)], "Incompatible number of blobs: the model has 1, the layer 2"),
        ([], "Incompatible number of blobs: the model has 0, the layer 2"),
        ([(5, 60), (5,), (5, 60), (5,), (5,)], "Incompatible number of blobs: the model has 5"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, shapes: list[tuple[int, ...]], wanted: str) -> None:
    file = write(tmp_path / "m", a=[np.ones(shape, np.float32) for shape in shapes])
    message = complaint(plain(), file)
    assert message.startswith(f"{file}: layer 'a': ")
    assert wanted in message


def legacy(array: np.ndarray, *shape: int) -> BlobProto:
    num, channels, height, width = shape
    values = array.ravel().tolist()
    return BlobProto(data=values, num=num, channels=channels, height=height, width=width)


def test_legacy_shapes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weight, bias = generator.random((5, 60), np.float32), generator.random(5, np.float32)
    net = plain()
    blobs = [legacy(weight, 1, 1, 5, 60), legacy(bias, 1, 1, 1, 5)]
    load_weights(net, write(tmp_path / "m", a=blobs))
    assert_equal(
        {k: v for k, v in values(net).items() if k[0] == "a"}, {"a/0": weight, "a/1": bias}
    )
    wrong = [legacy(weight, 5, 60, 1, 1), legacy(bias, 1, 1, 1, 5)]
    assert "Source param shape is 5 60 1 1 (300)" in complaint(net, write(tmp_path / "w", a=wrong))


def test_single_values_and_doubles(tmp_path: Path) -> None:
    text = DATA + layer("p", "PReLU", "data", "p", "prelu_param { channel_shared: true }")
    net = plain(text)
    assert net.params["p"][0].shape == ()
    load_weights(net, write(tmp_path / "m", p=[BlobProto(data=[0.75])]))
    assert float(net.params["p"][0].detach()) == 0.75
    load_weights(net, write(tmp_path / "m", p=[BlobProto(double_data=[0.5])]))
    assert float(net.params["p"][0].detach()) == 0.5
    for ending in ENDINGS:
        save_weights(net, tmp_path / f"m{ending}", hdf5=ending.endswith("h5"))
        net.params["p"][0].data.fill_(0)
        load_weights(net, str(tmp_path / f"m{ending}"))
        assert float(net.params["p"][0].detach()) == 0.5


def test_blobs_in_the_definition(tmp_path: Path) -> None:
    text = DATA + ip("a", "data")
    param = parse_net(text)
    weight, bias = np.full((5, 60), 3, np.float32), np.full(5, 4, np.float32)
    param.layer[1].blobs.extend([array_to_blob(weight), array_to_blob(bias)])
    net = Net(param, Context(surgery=False))
    load_definition_blobs(net)
    assert_equal(values(net), {"a/0": weight, "a/1": bias})
    assert len(saved(net, tmp_path).layer[1].blobs) == 2


# Files that are no models -------------------------------------------------------------------------


def test_files_that_are_no_models(tmp_path: Path) -> None:
    net = plain()
    assert "gone: cannot be read: No such file" in complaint(net, str(tmp_path / "gone"))
    assert "cannot be read" in complaint(net, str(tmp_path))
    (tmp_path / "text").write_text("layer { name: 'x' }")
    assert str(tmp_path / "text") in complaint(net, str(tmp_path / "text"))
    state = str(GOLDEN / "runs/sgd_inv/snap_iter_20.solverstate")
    assert "is a solver state, not a model; give it with -snapshot" in complaint(net, state)
    state = str(GOLDEN / "runs/sgd_hdf5_snapshot/snap_iter_20.solverstate.h5")
    assert "is a solver state, not a model" in complaint(net, state)


@pytest.mark.parametrize("kind", ["empty", "dataset", "names", "number", "cut"])
def test_hdf5_files_that_are_no_models(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "m.h5"
    with h5py.File(file, "w") as root:
        if kind == "dataset":
            root["data"] = np.zeros(3)
        if kind == "number":
            root["data/a/" + "7" * 5000] = np.zeros((5, 60))
        if kind == "names":
            root["data/a/weight"] = np.zeros((5, 60))
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:100])
    assert f"{file}: is not a model in HDF5" in complaint(plain(), str(file))


# HDF5 ---------------------------------------------------------------------------------------------


def test_hdf5_and_protobuf_hold_the_same() -> None:
    folder = GOLDEN / "runs/sgd_hdf5_snapshot"
    text = (folder / "train_val.prototxt").read_text().replace('"data/', f'"{GOLDEN}/data/')
    net, other = plain(text), plain(text)
    copy_trained_layers(net, str(folder / "snap_iter_20.caffemodel.h5"))
    with h5py.File(folder / "snap_iter_20.caffemodel.h5") as root:
        for key, array in values(net).items():
            assert np.array_equal(array, root["data"][key][()])
    assert not np.array_equal(values(net)["ip1/0"], values(other)["ip1/0"])


def test_slashes_in_names(tmp_path: Path) -> None:
    text = DATA + ip("block/1/a", "data") + ip("block/b", "block/1/a")
    text += layer("block", "ReLU", "block/b", "block/b")
    net = randomize(plain(text), 1)
    save_weights(net, tmp_path / "m.h5", hdf5=True)
    other = randomize(plain(text), 2)
    with recorded_log() as messages:
        load_weights(other, str(tmp_path / "m.h5"))
        load_weights(plain(DATA), str(tmp_path / "m.h5"))
    assert_equal(values(other), values(net))
    ignored = [line for line in messages if "Ignoring" in line]
    assert ignored == [f"Ignoring source layer {name}" for name in ("block/1/a", "block/b")]


@pytest.mark.parametrize(
    "name", ["", "/ip", "ip/", "a//b", ".", "a/./b", "a\\000b", "ip/1", "ip/0/b"]
)
def test_names_without_a_place_in_hdf5(tmp_path: Path, name: str) -> None:
    """h5py made `/ip` at the root of the file, say, where nobody looks for a layer."""
    named = ip("other", "ip").replace("name: 'other'", f"name: '{name}'")
    net = plain(DATA + ip("ip", "data") + named)
    with pytest.raises(CaffeError, match="has no place of this name in HDF5") as caught:
        save_weights(net, tmp_path / "m.h5", hdf5=True)
    assert caught.value.layer == name.replace("\\000", "\0") and not [*tmp_path.iterdir()]
    save_weights(net, tmp_path / "m.caffemodel")


def test_names_beside_arrays(tmp_path: Path) -> None:
    net = randomize(plain(DATA + ip("ip", "data") + ip("ip/2", "ip") + ip("ip/x", "ip/2")), 1)
    save_weights(net, tmp_path / "m.h5", hdf5=True)
    other = plain(DATA + ip("ip", "data") + ip("ip/2", "ip") + ip("ip/x", "ip/2"))
    load_weights(other, str(tmp_path / "m.h5"))
    assert_equal(values(other), values(net))


@pytest.mark.parametrize("surgery", [False, True])
@pytest.mark.parametrize(("shared", "bias"), [("w", 1), ("b", 1), ("wb", 1), ("w", 0)])
def test_shared_blobs_are_stored_once(
    tmp_path: Path, shared: str, bias: int, surgery: bool
) -> None:
    params = "".join(
        f"param {{ {f'name: {name!r}' if name in shared else ''} }} " for name in "wb"[: 1 + bias]
    )
    text = input_layer(x=(2, 6), y=(2, 6)) + ip("a", "x", params) + ip("b", "y", params)
    if not bias:
        text = text.replace("num_output: 5", "num_output: 5 bias_term: false")
    net = randomize(make_net(text, context=Context(surgery=surgery)), 1)
    save_weights(net, tmp_path / "m.h5", hdf5=True)
    other = randomize(make_net(text, context=Context(surgery=surgery)), 2)
    load_weights(other, str(tmp_path / "m.h5"))
    assert_equal(values(other), values(net))

    apart = plain(text.replace("name: 'w'", "").replace("name: 'b' }", "}"))
    wanted = (
        f"layer 'b': Incompatible number of blobs: the model has no blob {'wb'.index(shared[0])}"
    )
    assert complaint(apart, str(tmp_path / "m.h5")).endswith(wanted)


def test_blobs_that_the_layer_has_not(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as root:
        root["data/prelu/0"] = np.zeros(5)
        root["data/prelu/1"] = np.zeros(5)
    message = "layer 'prelu': Incompatible number of blobs: the model has 2, the layer 1"
    assert message in complaint(plain(), str(tmp_path / "m.h5"))
