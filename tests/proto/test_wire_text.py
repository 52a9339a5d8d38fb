"""Strings that are not UTF-8 in binary files: the same bytes in, out, and nothing else touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from caffe_dns.encoding import decode, encode
from caffe_dns.proto.blobs import array_to_blob, blob_to_array
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter
from caffe_dns.proto.text import parse_text, read_binary, to_text, write_binary
from caffe_dns.proto.wire_text import parse, serialize

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
