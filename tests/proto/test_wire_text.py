"""Strings that are not UTF-8 in binary files: the same bytes in, out, and nothing else touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from caffe_dns.encoding import decode, encode
from caffe_dns.errors import CaffeError
from caffe_dns.proto import wire_text
from caffe_dns.proto.blobs import array_to_blob, blob_to_array
from caffe_dns.proto.caffe_pb2 import AnnotatedDatum, LayerParameter, NetParameter
from caffe_dns.proto.text import parse_text, read_binary, to_text, write_binary
from caffe_dns.proto.wire import LENGTH, VARINT, tag, varint
from caffe_dns.proto.wire_text import _MOST_MEMORY, _memory_of_byte, _Survey, parse, serialize

NAME = "全连接".encode("gbk")


def net(name: str) -> NetParameter:
    """A net whose layer has this name, a blob, a field that we do not know, and two tops."""
    blob = array_to_blob(np.arange(6, dtype=np.float32).reshape(2, 3))
    layer = LayerParameter(name=name, type="InnerProduct", top=["a", name], blobs=[blob])
    layer.data_param.source = f"/{name}/b"
    layer.MergeFromString(b"\xa2\xf4\x03\x03xyz")  # field 8004
    return NetParameter(name="n", layer=[layer])


def test_bytes_are_kept(tmp_path: Path) -> None:
    # As protobuf writes them: an ASCII name of that length, then the bytes in its place.
    raw = net("N" * len(NAME)).SerializeToString().replace(b"N" * len(NAME), NAME)
    (tmp_path / "a.caffemodel").write_bytes(raw)
    message = read_binary(tmp_path / "a.caffemodel", NetParameter)
    layer = message.layer[0]
    assert encode(layer.name) == NAME
    assert [encode(top) for top in layer.top] == [b"a", NAME]
    assert encode(layer.data_param.source) == b"/" + NAME + b"/b"
    assert np.array_equal(blob_to_array(layer.blobs[0]), np.arange(6).reshape(2, 3))
    write_binary(tmp_path / "b.caffemodel", message)
    assert (tmp_path / "b.caffemodel").read_bytes() == raw


def test_text_has_them_in_octal() -> None:
    """As `DebugString` prints them, and `TextFormat::Parse` reads them."""
    text = to_text(net(decode(NAME)).layer[0])
    assert text.startswith('name: "\\310\\253\\301\\254\\275\\323"\n')
    again = parse_text(text, LayerParameter).message
    assert encode(again.name) == NAME


def test_what_is_utf_8_stays_protobufs_business() -> None:
    message = net("全连接")
    raw = serialize(message)
    assert raw == message.SerializeToString()
    again = NetParameter()
    parse(again, raw)
    assert again == message


def test_what_ends_early_is_no_message() -> None:
    raw = net("N" * len(NAME)).SerializeToString().replace(b"N" * len(NAME), NAME)
    with pytest.raises(DecodeError):
        parse(NetParameter(), raw[:-3])


def field(number: int, content: bytes) -> bytes:
    return tag(number, LENGTH) + varint(len(content)) + content


EMPTY_LAYER, EMPTY_PARAM = field(100, b""), field(6, b"")


@pytest.mark.parametrize(
    "raw",
    [
        EMPTY_LAYER * 1200,
        field(100, EMPTY_PARAM * 12_000),
        field(100, field(7, field(7, field(1, b"\x01" * 70_000)))),
    ],
    ids=["layers", "params of a layer", "extents of a blob"],
)
def test_what_takes_much_more_memory_than_bytes_is_refused(
    raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty layer has 3 bytes in a file, and some 900 in memory."""
    monkeypatch.setattr("caffe_dns.proto.wire_text._MOST_MEMORY", 1 << 20)
    (tmp_path / "many.caffemodel").write_bytes(raw)
    with pytest.raises(CaffeError, match=r"many\.caffemodel: consists of so many messages"):
        read_binary(tmp_path / "many.caffemodel", NetParameter)


def test_what_nets_have_is_not_refused() -> None:
    """Blobs and strings count for nothing, and 20,000 layers with all that belongs to one pass."""
    layer = net("n").layer[0]
    layer.convolution_param.weight_filler.type = layer.convolution_param.bias_filler.type = "xavier"
    layer.param.add(lr_mult=1, decay_mult=1)
    layer.param.add(lr_mult=2, decay_mult=0)
    layer.blobs.append(layer.blobs[0])
    raw = field(100, layer.SerializeToString()) * 2000
    survey = _Survey()
    survey.look_at(memoryview(raw), NetParameter.DESCRIPTOR)
    assert survey.left > _MOST_MEMORY * 0.9
    large = net("s" * (1 << 22))
    large.layer[0].blobs.append(array_to_blob(np.zeros(1 << 22, np.float32)))
    parse(NetParameter(), large.SerializeToString())


def test_short_records_are_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an AnnotatedDatum takes at most is known from its length; this one has empty groups."""
    groups = field(3, b"") * 10_000
    survey = _Survey()
    survey.look_at(memoryview(groups), AnnotatedDatum.DESCRIPTOR)
    counted = _MOST_MEMORY - survey.left
    most = _memory_of_byte(AnnotatedDatum.DESCRIPTOR) * len(groups)
    assert counted < most < 2 * counted
    monkeypatch.setattr("caffe_dns.proto.wire_text._MOST_MEMORY", counted - 1)
    with pytest.raises(CaffeError, match="consists of so many messages"):
        parse(AnnotatedDatum(), groups)
    monkeypatch.setattr("caffe_dns.proto.wire_text._MOST_MEMORY", most)
    monkeypatch.delattr("caffe_dns.proto.wire_text._Survey")
    record = AnnotatedDatum()
    parse(record, groups)
    assert len(record.annotation_group) == 10_000
    with pytest.raises(DecodeError):
        parse(record, groups[:-1])


def test_nothing_is_renumbered_that_has_too_many_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """To renumber takes time for each field."""
    monkeypatch.setattr(wire_text, "_MOST_MEMORY", 1 << 16)
    seen: list[bytes] = []

    def renumber(raw: bytes) -> bytes:
        seen.append(raw)
        return raw

    field = tag(8004, VARINT) + b"\0"
    parse(NetParameter(), field, renumber)
    with pytest.raises(CaffeError, match="so many messages, fields and numbers"):
        parse(NetParameter(), field * 2000, renumber)
    assert seen == [field]
