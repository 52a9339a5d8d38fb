"""The compact file: small, bit for bit reversible, and never taken when damaged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.export import compact
from caffe_dns.export.deploy import Deployment, deploy
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.files import reading
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.upgrade import read_net
from caffe_dns.weights.compact import Contents, decode, is_compact, lossless, sections
from caffe_dns.weights.compact.files import SIGNATURE
from tests.export.build import CONVOLUTIONAL, small_model
from tests.oracle import OFFICIAL, assert_same_bits


def of_arrays(*arrays: np.ndarray) -> UnmaskedModel:
    """A model of one layer; a compact file takes any arrays."""
    definition = NetParameter(name="n")
    definition.layer.add(name="layer", type="Convolution")
    return UnmaskedModel(Deployment(definition, ["a remark"]), [list(arrays)])


def to_bytes(model: UnmaskedModel) -> bytes:
    """A file of version 1, also where its writer would take another."""
    definition = model.definition
    contents = Contents(definition.param, definition.remarks, model.blobs)
    return SIGNATURE + bytes([lossless.VERSION]) + lossless.encode(contents)


def assert_reversible(model: UnmaskedModel) -> bytes:
    raw = to_bytes(model)
    again = compact.of_contents(decode(raw))
    assert again.definition == model.definition
    assert_same_bits(again.blobs, model.blobs)
    return raw


def test_every_kind_of_number() -> None:
    special = np.array([0.0, -0.0, np.nan, -np.inf, 1e-45, 3.4e38, -1.5], np.float32)
    assert_reversible(of_arrays(special, np.zeros((2, 3), np.float32)))
    assert_reversible(of_arrays(np.float32(2.5).reshape(()), np.zeros((0, 4), np.float32)))
    assert_reversible(of_arrays())


@pytest.mark.parametrize("gap", [1, 127, 128, 129, 16383, 16384, 70000])
def test_distances_of_any_length(gap: int) -> None:
    array = np.zeros(2 * gap + 5, np.float32)
    array[[gap - 1, gap, 2 * gap, 2 * gap + 4]] = [1, 2, 3, 4]
    assert_reversible(of_arrays(array))


def test_random_sparsity() -> None:
    generator = np.random.default_rng(3)
    for density in (0.001, 0.1, 1.0):
        array = generator.standard_normal((11, 3, 70)).astype(np.float32)
        array[generator.random(array.shape) > density] = 0
        assert_reversible(of_arrays(array, array[:, 0, 0].copy()))


def test_whole_net(tmp_path: Path) -> None:
    model, _ = small_model(CONVOLUTIONAL, tmp_path)
    (tmp_path / "net.dnsz").write_bytes(compact.to_bytes(model))
    assert is_compact(tmp_path / "net.dnsz")
    assert not is_compact(tmp_path / "net.caffemodel")
    again = compact.load(tmp_path / "net.dnsz")
    assert b"".join(again.to_pieces()) == b"".join(model.to_pieces())


def test_weights_of_two_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights take fewer bytes, and many nets have more than any file may take (`FREE`)."""
    monkeypatch.setattr(reading, "FREE", 0)
    signs = np.random.default_rng(5).choice(np.array([-0.1, 0.1], np.float32), 100_000)
    assert_reversible(of_arrays(signs))


def test_a_layer_of_many_arrays() -> None:
    """A DenseBlock of 12 transitions has 61."""
    assert_reversible(of_arrays(*np.arange(1, 62, dtype=np.float32)[:, None]))


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the official models are not here")
def test_official_lenet() -> None:
    param = read_net(OFFICIAL / "lenet5.prototxt").message
    model = UnmaskedModel.load(deploy(param), str(OFFICIAL / "caffe_lenet5_sparse.caffemodel"))
    assert model.kept == 3993
    assert model.total == 431080
    assert len(assert_reversible(model)) < 20_000


def test_damage_is_found() -> None:
    array = np.arange(40, dtype=np.float32)
    raw = to_bytes(of_arrays(array))
    for position in range(len(raw)):
        spoiled = bytearray(raw)
        spoiled[position] ^= 1
        with pytest.raises(CaffeError):
            decode(bytes(spoiled))
    for length in (0, 5, 20, 60, len(raw) - 1):
        with pytest.raises(CaffeError):
            decode(raw[:length])
    with pytest.raises(CaffeError, match="checksum"):
        decode(raw + b"x")


def test_what_a_file_says_of_itself_is_checked() -> None:
    raw = to_bytes(of_arrays(np.arange(40, dtype=np.float32)))
    start = len(SIGNATURE) + 1 + 32
    for position in range(start, len(raw)):
        spoiled = bytearray(raw)
        spoiled[position] ^= 0x11
        spoiled[len(SIGNATURE) + 1 : start] = hashlib.sha256(spoiled[start:]).digest()
        try:
            decode(bytes(spoiled))
        except CaffeError as error:
            assert "is not a compact model that dns wrote" in str(error)


@pytest.mark.parametrize(
    ("entries", "distances", "said"),
    [
        ([10**9], b"", "it claims 1000000000 entries in 1 arrays"),
        ([0] * 200_000, b"", "it claims 0 entries in 200000 arrays"),
        ([-1, 2], b"\1", "fewer entries than none"),
        ([1], b"\x81" * 10 + b"\1", "a distance is too large"),
    ],
)
def test_what_would_take_much_is_refused(entries: list[int], distances: bytes, said: str) -> None:
    header = {
        "definition": "layer { name: 'a' type: 'InnerProduct' }",
        "remarks": [],
        "shapes": [[[4]] * len(entries)],
        "entries": [entries],
        "distances": len(distances),
    }
    raw = json.dumps(header).encode()
    parts = [sections.pack(part) for part in (raw, distances, *[b"\0"] * 4)]
    body = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    body = len(raw).to_bytes(4, "little") + body
    digest = hashlib.sha256(body).digest()
    with pytest.raises(CaffeError, match=said):
        decode(SIGNATURE + b"\0\0\0\1" + digest + body)


def test_other_files(tmp_path: Path) -> None:
    file = tmp_path / "x.dnsz"
    with pytest.raises(CaffeError, match=r"x\.dnsz: cannot be read: No such file"):
        compact.load(file)
    file.write_bytes(b"something else")
    with pytest.raises(CaffeError, match=r"x\.dnsz: is not a compact model"):
        compact.load(file)
    file.write_bytes(SIGNATURE + b"\x63" + bytes(40))
    with pytest.raises(
        CaffeError, match="version 99, which a later dns wrote: this one reads versions 1, 2, 3"
    ):
        compact.load(file)


@pytest.mark.parametrize("raw", [b"", b"abc", bytes(9000), bytes(range(256)) * 40])
def test_sections(raw: bytes) -> None:
    packed = sections.pack(raw)
    assert len(packed) <= len(raw) + 1
    assert sections.unpack(packed, len(raw)) == raw
    with pytest.raises(ValueError, match="instead of"):
        sections.unpack(packed, len(raw) + 1)


def test_long_sections_go_without_lzma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "_LIMIT", 100)
    raw = bytes(range(256)) * 40
    packed = sections.pack(raw)
    assert packed[0] == 1
    assert sections.unpack(packed, len(raw)) == raw
    with pytest.raises(ValueError, match="unknown compression"):
        sections.unpack(b"\x07abc", 3)
    with pytest.raises(ValueError):
        sections.unpack(b"\x01abc", 3)
