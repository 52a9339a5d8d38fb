import pytest

from caffe_dns.proto.caffe_pb2 import Datum
from caffe_dns.proto.wire import LENGTH, Malformed, read_fields, read_varint, tag, varint


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**63])
def test_varints_round_trip(value: int) -> None:
    assert read_varint(memoryview(varint(value)), 0) == (value, len(varint(value)))


def test_fields_of_every_kind() -> None:
    datum = Datum(channels=300, data=b"abc", float_data=[1.5], encoded=True)
    raw = datum.SerializeToString()
    found = [(f.number, raw[f.value : f.end]) for f in read_fields(memoryview(raw))]
    assert [number for number, _ in found] == [1, 4, 6, 7]
    assert dict(found)[4] == b"abc"
    assert b"".join(raw[f.start : f.end] for f in read_fields(memoryview(raw))) == raw
    assert raw[raw.index(b"abc") - 2 :].startswith(tag(4, LENGTH))


@pytest.mark.parametrize(
    "bad", [b"\x08", b"\x0a\x05ab", b"\x0d\x00", b"\x0b", b"\xff" * 12, bytes(8)]
)
def test_what_is_no_message(bad: bytes) -> None:
    with pytest.raises(Malformed):
        list(read_fields(memoryview(bad)))
