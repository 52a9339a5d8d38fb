"""Version 3 of the compact file: reversible bit for bit, and never taken when damaged."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.export.deploy import deploy
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.sharing import share_values
from caffe_dns.export.shrink import shrink
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.text import to_text
from caffe_dns.proto.upgrade import read_net
from caffe_dns.weights.compact import (
    Contents,
    decode,
    elements,
    encode,
    lossless,
    read,
    shared,
)
from caffe_dns.weights.compact.elements import Elements
from caffe_dns.weights.compact.files import SIGNATURE
from caffe_dns.weights.compact.model import Model
from caffe_dns.weights.compact.range_coder import Decoder, Encoder
from caffe_dns.weights.compact.text import Text
from tests import programs
from tests.oracle import OFFICIAL, assert_same_bits

START = len(SIGNATURE) + 1
BEGINNING = SIGNATURE + b"\x03"


def contents(*layers: list[np.ndarray], remarks: tuple[str, ...] = ()) -> Contents:
    """A net of such layers; a compact file takes any arrays."""
    definition = NetParameter(name="n")
    for index in range(len(layers)):
        definition.layer.add(name=f"layer{index}", type="InnerProduct", top=["x"])
    return Contents(definition, list(remarks), list(layers))


def some_layer(*shape: int, values: int = 6, density: float = 0.2, seed: int = 1) -> np.ndarray:
    """Entries of a few values, most of them zero."""
    generator = np.random.default_rng(seed)
    chosen = generator.standard_normal(values).astype(np.float16).astype(np.float32)
    array = chosen[generator.integers(values, size=shape)]
    array[generator.random(shape) > density] = 0
    return array


def assert_reversible(given: Contents) -> bytes:
    raw = encode(given)
    assert raw[:START] == BEGINNING
    again = decode(raw)
    assert again.definition == given.definition
    assert again.remarks == given.remarks
    assert_same_bits(again.blobs, given.blobs)
    assert encode(again) == raw
    return raw


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return programs.load("read_dnsz", monkeypatch)


SHAPES = [
    [some_layer(4, 2, 3, 3), some_layer(4)],
    [some_layer(30, 40, values=1), some_layer(30, values=1)],
    [some_layer(5, 7, values=200, density=1.0)],
    [np.zeros((3, 4), np.float32), np.zeros(3, np.float32)],
    [some_layer(6, 5), some_layer(5), some_layer(2, 2, 2)],
    [],
    [some_layer(9), np.float32(2.5).reshape(()), np.zeros((0, 4), np.float32)],
    [np.array([0.1, -0.0, np.nan, np.inf, 1e-45], np.float32), np.float32(7).reshape(())],
]


def test_layers_of_all_kinds(reader: ModuleType) -> None:
    given = contents(*SHAPES, remarks=("a remark\nof two lines", "data: ought to be ü"))
    raw = assert_reversible(given)
    _, arrays = reader.read(raw)
    for index, layer in enumerate(SHAPES):
        for number, array in enumerate(layer):
            found = arrays[f"layer{index}/{number}"]
            assert found.tobytes() == array.tobytes()
            assert found.shape == array.shape


def test_bytes_are_those_of_other_machines() -> None:
    # Recorded: whatever reads and writes this version has to give the same.
    raw = encode(contents([some_layer(20, 30), some_layer(20)], remarks=("r",)))
    assert (len(raw), zlib.crc32(raw)) == (139, 1894697934)


def test_reader_is_short() -> None:
    source = (programs.TOOLS / "read_dnsz").read_text()
    _, _, code = source.split('"""', 2)
    assert sum(1 for line in code.splitlines() if line.strip()) < 150


def test_few_bytes_for_what_is_sparse() -> None:
    empty = len(encode(contents([np.zeros((100, 300), np.float32)])))
    array = some_layer(100, 300, values=4, density=0.02)
    bits = 100 * 300 * (-0.02 * np.log2(0.02) - 0.98 * np.log2(0.98)) + 600 * 2
    assert len(encode(contents([array]))) - empty < 1.2 * bits / 8


def test_what_is_not_for_this_version() -> None:
    wide = np.arange(300, dtype=np.float32).reshape(3, 100)
    assert shared.encode(contents([wide])) is None
    assert shared.encode(contents([np.full((2, 2), 0.1, np.float32)])) is None
    assert shared.encode(contents([np.full((2, 2), 1e5, np.float32)])) is None
    assert shared.encode(contents([np.full((2, 2), -0.0, np.float32)])) is None
    assert shared.encode(contents([np.ones((2, 2), np.float32)], remarks=("\x01",))) is None
    assert shared.encode(contents([np.ones((1030, 1030), np.float32)])) is None
    assert shared.encode(contents([np.zeros((2, 2**19), np.float32)])) is None
    assert decode(encode(contents([wide]))).blobs[0][0].tobytes() == wide.tobytes()


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the official models are not here")
def test_official_lenet() -> None:
    param = read_net(OFFICIAL / "lenet5.prototxt").message
    model = UnmaskedModel.load(deploy(param), str(OFFICIAL / "caffe_lenet5_sparse.caffemodel"))
    small = share_values(shrink(model).model, 3)
    definition = small.definition
    raw = encode(Contents(definition.param, definition.remarks, small.blobs))
    assert len(raw) < 3_000
    assert_same_bits(decode(raw).blobs, small.blobs)


def test_damage_is_found() -> None:
    raw = encode(contents([some_layer(6, 9), some_layer(6)]))
    for position in range(len(raw)):
        spoiled = bytearray(raw)
        spoiled[position] ^= 1
        with pytest.raises(CaffeError):
            decode(bytes(spoiled))
    for length in range(0, len(raw), 7):
        with pytest.raises(CaffeError):
            decode(raw[:length])


def refusal(stream: bytes) -> str:
    """What is said of a file with a right checksum, '' if it is taken."""
    try:
        decode(BEGINNING + zlib.crc32(stream).to_bytes(4, "little") + stream)
    except CaffeError as error:
        return str(error)
    return ""


def test_what_a_file_says_of_itself_is_checked() -> None:
    stream = encode(contents([some_layer(6, 9), some_layer(6)]))[START + 4 :]
    refused = 0
    for position in range(0, len(stream), 4):
        spoiled = bytearray(stream)
        spoiled[position] ^= 0x55
        if said := refusal(bytes(spoiled)):
            assert "is not a compact model that dns wrote" in said
            refused += 1
    assert refused >= 3
    assert "ends too early" in refusal(stream[: len(stream) // 2])
    generator = np.random.default_rng(5)
    for length in (0, 1, 5, 40):
        assert refusal(generator.bytes(length))


@pytest.mark.parametrize("spare", [1200, 240, 200, 100, 60, 41, 1])
def test_files_of_endless_work_are_refused(spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the text, in numbers, rows and columns, entries, and words."""
    given = contents([some_layer(6, 9), some_layer(6)], [np.array([0.1], np.float32)])
    stream = encode(given)[START + 4 :]
    counting = Elements(Decoder(stream), Model())
    shared.Layout(counting).code(None)
    most = elements.MOST_BITS - counting.left
    monkeypatch.setattr(elements, "MOST_BITS", most)
    assert not refusal(stream)
    monkeypatch.setattr(elements, "MOST_BITS", most - spare)
    assert f"it has more than {most - spare} bits" in refusal(stream)
    assert shared.encode(given) is None


def test_rows_without_entries_are_counted() -> None:
    assert_reversible(contents([np.zeros((3, 0), np.float32)], [some_layer(2, 3)]))
    coder = Encoder()
    writer = Elements(coder, Model())
    writer.text(b'layer { name: "a" }')
    for kind, number in (("arrays", 1), ("axes", 2), ("extent", 2**32 - 2), ("extent", 0)):
        writer.integer(kind, number)
    writer.integer("values", 0)
    assert "it has more than 33554432 entries" in refusal(coder.finish())


def test_long_lines_take_little_memory(reader: ModuleType) -> None:
    remark = "".join(f"{number} and " for number in range(300))
    given = contents([some_layer(2, 2)], remarks=(remark,))
    assert reader.read(assert_reversible(given))[0] == to_text(given.definition)
    text = Text()
    lines = set()
    for byte in remark.encode():
        text.add(byte)
        lines.add(text.past()[-1])
    assert max(len(line) for line in lines if isinstance(line, bytes)) == 64
    # A blank at the end of a line is not looked at.
    assert len(lines) == len(remark.replace(" ", ""))


def test_what_a_byte_depends_on_follows_from_the_text_alone() -> None:
    """The line so far and the line that is expected, as docs/dnsz.md tells them."""
    generator = np.random.default_rng(6)
    pieces = [b"layer {\n", b"name: ", b"x" * 40, b"  ", b"\n", b"\t", b"\r", b"}\n", b"\x0b\x01"]
    lines: list[bytes] = []
    text, at, done = Text(), 0, b""
    for byte in b"".join(pieces[index] for index in generator.integers(len(pieces), size=400)):
        line = bytes(text.known[text.known.rfind(b"\n") + 1 :]).strip()
        assert text.past()[-1] == (line if len(line) < 64 else hashlib.blake2b(line).digest())
        likely = lines[at] if at < len(lines) else b""
        following = likely[len(done) :][:1] if likely.startswith(done) else b""
        assert text.expected(1, 7) == (following[0] >> 7 if following else -1)
        text.add(byte)
        done += bytes([byte])
        if byte < 32:
            if done in lines and done != likely:
                at = max(index for index, line in enumerate(lines) if line == done)
            at += 1
            lines.append(done)
            done = b""


@pytest.mark.parametrize("version", [1, 3])
def test_a_number_that_is_not_finite_is_refused_in_a_file(version: int, tmp_path: Path) -> None:
    """A file may claim what no model has: as in a .caffemodel, the first such number is named."""
    array = np.arange(4, dtype=np.float32)
    array[2] = np.nan
    given = contents([some_layer(6, 9)], [some_layer(2, 3), array])
    raw = encode(given)
    if version == 1:
        raw = SIGNATURE + bytes([0, 0, 0, 1]) + lossless.encode(given)
    (tmp_path / "m.dnsz").write_bytes(raw)
    with pytest.raises(CaffeError) as caught:
        read(tmp_path / "m.dnsz")
    said = "array 1 of layer 'layer1' holds nan at [2]; it must be finite"
    assert str(caught.value) == f"{tmp_path / 'm.dnsz'}: {said}"
