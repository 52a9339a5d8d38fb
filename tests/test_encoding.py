"""Bytes that are not UTF-8 come back as they were, whatever stands around them."""

from __future__ import annotations

import os

import pytest
from google.protobuf.message import Message

from caffe_dns.encoding import MARK, decode, encode, in_message, on_disk
from caffe_dns.proto.caffe_pb2 import LayerParameter

TEXTS = [
    b"plain",
    "中文 é 🙂".encode(),
    "中文".encode("gbk"),
    "Größe".encode("latin-1"),
    b"caf\xc3\xa9 \xe9 \xc3",
    bytes(range(1, 256)),
    # The characters that stand for such bytes, typed by somebody.
    "\U0010f780\U0010f7ff".encode(),
    b"\xf4\x8f\x9e\x80\xf4",
]


@pytest.mark.parametrize("raw", TEXTS)
def test_text_of_messages_keeps_all_bytes(raw: bytes) -> None:
    text = decode(raw)
    assert encode(text) == raw
    message: Message = LayerParameter(name=text)
    assert LayerParameter.FromString(message.SerializeToString()).name == text
    # What is UTF-8 is itself; the rest is marked, so that it is found in what protobuf writes.
    assert (text == raw.decode(errors="replace")) == (MARK.search(text.encode()) is None)


@pytest.mark.parametrize("raw", TEXTS[:-2])
def test_names_are_those_of_the_file_system(raw: bytes) -> None:
    assert on_disk(decode(raw)) == os.fsdecode(raw)
    assert encode(os.fsdecode(raw)) == raw
    assert encode(in_message(os.fsdecode(raw))) == raw
    assert on_disk(in_message(os.fsdecode(raw))) == os.fsdecode(raw)
