"""Files and messages: Caffe's own print as the oracle, and one-line errors for unreadable files."""

import re
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.message import Message

from caffe_dns.encoding import encode
from caffe_dns.errors import CaffeError
from caffe_dns.proto import text
from caffe_dns.proto.caffe_pb2 import (
    BlobProto,
    Datum,
    FillerParameter,
    NetParameter,
    NetState,
    SolverParameter,
    SolverState,
)
from caffe_dns.proto.text import (
    parse_text,
    read_binary,
    read_text,
    to_text,
    write_binary,
    write_text,
)
from tests.oracle import GOLDEN, OFFICIAL

LOGS = sorted([*GOLDEN.glob("runs/*/caffe.log"), *GOLDEN.glob("logs/*.log")])
PRINTED = re.compile(r"Initializing (solver|net) from parameters: \n((?:(?![IWEF]\d{4} ).*\n)*)")


def printed_messages() -> list[tuple[type[Message], str]]:
    kinds: dict[str, type[Message]] = {"solver": SolverParameter, "net": NetParameter}
    found = [match for path in LOGS for match in PRINTED.findall(path.read_text())]
    return [(kinds[kind], print_) for kind, print_ in found]


def test_messages_print_as_in_caffes_logs() -> None:
    messages = printed_messages()
    assert len(messages) > 60
    for kind, expected in messages:
        assert to_text(parse_text(expected, kind).message) == expected


@pytest.mark.parametrize("name", ["v0", "v1", "solver_enum"])
def test_messages_print_as_caffes_tools_write_them(name: str, tmp_path: Path) -> None:
    path = GOLDEN / "legacy" / f"{name}_upgraded.prototxt"
    kind = SolverParameter if name == "solver_enum" else NetParameter
    write_text(tmp_path / "again.prototxt", read_text(path, kind).message)
    assert (tmp_path / "again.prototxt").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (1.0, "1"),
        (100000.0, "100000"),
        (1e6, "1e+06"),
        (14000.0, "14000"),
        (1 / 256, "0.00390625"),
        (1e-8, "1e-08"),
        (0.1, "0.1"),
        (0.001, "0.001"),
        (1.281, "1.281"),
        (16777216.0, "16777216"),
        (3.14159274, "3.1415927"),
        (1.17549435e-38, "1.1754944e-38"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (float("nan"), "nan"),
    ],
)
def test_floats_print_in_the_fewest_digits(value: float, expected: str) -> None:
    printed = to_text(FillerParameter(value=value))
    assert printed == f"value: {expected}\n"
    again = parse_text(printed, FillerParameter).message.value
    np.testing.assert_array_equal(np.float32(again), np.float32(value))


def test_doubles_print_with_their_own_digits() -> None:
    blob = BlobProto(double_data=[0.1, 1 / 3, 2e-300])
    assert to_text(blob).split()[1::2] == ["0.1", "0.3333333333333333", "2e-300"]


def test_all_bytes_print_as_protobuf_prints_them() -> None:
    message = Datum(data=bytes(range(256)))
    assert to_text(message) == text_format.MessageToString(message)


def test_strings_print_escaped() -> None:
    net = NetParameter(name="a\"b'c\\d\n\r\t\x01\x7f\u00e9?")
    printed = r"""name: "a\"b\'c\\d\n\r\t\001\177\303\251?" """.strip() + "\n"
    assert to_text(net) == printed
    assert parse_text(printed, NetParameter).message == net
    assert to_text(Datum(data=b"\xff\x00")) == 'data: "\\377\\000"\n'


def test_fields_print_by_number_and_empty_messages_too() -> None:
    net = NetParameter(force_backward=False, input=["x"])
    net.layer.add().clip_param.SetInParent()
    assert to_text(net) == 'input: "x"\nforce_backward: false\nlayer {\n  clip_param {\n  }\n}\n'


# Reading text -------------------------------------------------------------------------------------


def error_of_reading(path: Path, binary: bool = False) -> str:
    with pytest.raises(CaffeError) as caught:
        if binary:
            read_binary(path, NetParameter)
        else:
            read_text(path, NetParameter)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("binary", [False, True])
def test_a_missing_file_and_a_folder(tmp_path: Path, binary: bool) -> None:
    path = tmp_path / "missing.prototxt"
    assert error_of_reading(path, binary) == f"{path}: there is no such file"
    assert error_of_reading(tmp_path, binary) == f"{tmp_path}: cannot be read: Is a directory"


def test_a_model_given_as_a_definition() -> None:
    path = GOLDEN / "runs" / "adam" / "init.caffemodel"
    assert error_of_reading(path) == (
        f"{path}: this looks like a binary model; give it with -weights"
    )


@pytest.mark.parametrize("encoding", ["latin-1", "gbk", "utf-8"])
def test_text_of_a_byte_to_a_letter_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "net.prototxt"
    raw = "name: 'é' # é\n".encode(encoding)
    path.write_bytes(raw)
    message = read_text(path, NetParameter).message
    assert encode(message.name) == raw[7:].split(b"'")[0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_text_of_two_bytes_to_a_letter(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "net.prototxt"
    path.write_bytes("layer { name: 'x' type: 'ReLU' }\r\n".encode(encoding))
    assert error_of_reading(path) == f"{path}: this is text in UTF-16 or UTF-32; save it as UTF-8"


@pytest.mark.parametrize("end", ["\x1a", "\x1a\r\n", "\0\0\0"])
def test_what_is_no_text_at_the_end(tmp_path: Path, end: str) -> None:
    """Caffe's parser stops there, too: "Invalid control characters encountered in text"."""
    path = tmp_path / "net.prototxt"
    path.write_text(f"name: 'x'\n{end}")
    byte = ascii(end[0])
    assert error_of_reading(path) == (
        f"{path}:2: expected the name of a field, found {byte} (column 1); "
        "no text has this byte, so delete it"
    )


def test_a_model_in_hdf5_given_as_a_definition() -> None:
    path = GOLDEN / "runs" / "sgd_hdf5_snapshot" / "snap_iter_20.caffemodel.h5"
    assert error_of_reading(path) == (
        f"{path}: this is an HDF5 file, not a definition; a model is given with -weights"
    )


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "bom.prototxt"
    path.write_text('name: "net"\r\n', encoding="utf-8-sig")
    parsed = read_text(path, NetParameter)
    assert parsed.message.name == "net"
    assert parsed.file == str(path)


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text("\nnome: 'x'\n")
    assert error_of_reading(path).startswith(f"{path}:2: nome: unknown field 'nome'")


# Reading and writing binary files -----------------------------------------------------------------


def test_binary_files_round_trip(tmp_path: Path) -> None:
    folder = GOLDEN / "runs" / "adam"
    for source, kind in [
        (folder / "snap_iter_20.caffemodel", NetParameter),
        (folder / "snap_iter_20.solverstate", SolverState),
        (GOLDEN / "tools" / "mean.binaryproto", BlobProto),
    ]:
        write_binary(tmp_path / source.name, read_binary(source, kind))
        assert (tmp_path / source.name).read_bytes() == source.read_bytes()


MODEL = GOLDEN / "runs" / "adam" / "init.caffemodel"
STATE = GOLDEN / "runs" / "adam" / "snap_iter_20.solverstate"
MEAN = GOLDEN / "tools" / "mean.binaryproto"
SOLVER = GOLDEN / "runs" / "adam" / "solver.prototxt"


@pytest.mark.parametrize(
    ("path", "kind", "reason"),
    [
        (MODEL, SolverState, "truncated or another kind of file"),
        (MODEL, BlobProto, "truncated or another kind of file"),
        (MODEL, NetState, "truncated or another kind of file"),
        (STATE, NetParameter, "truncated or another kind of file"),
        (STATE, BlobProto, "truncated or another kind of file"),
        (MEAN, NetParameter, "truncated or another kind of file"),
        (SOLVER, NetParameter, "it looks like a text file"),
        (SOLVER, SolverState, "it looks like a text file"),
    ],
)
def test_a_file_of_another_kind(path: Path, kind: type[Message], reason: str) -> None:
    with pytest.raises(CaffeError) as caught:
        read_binary(path, kind)
    assert str(caught.value) == f"{path}: is not a {kind.DESCRIPTOR.name}: {reason}"


@pytest.mark.parametrize("keep", [0, 1, 7, 1000, -1])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.caffemodel"
    path.write_bytes(MODEL.read_bytes()[:keep])
    assert error_of_reading(path, binary=True).startswith(f"{path}: is not a NetParameter: ")


def test_more_than_2_gib_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.caffemodel"
    with open(path, "wb") as file:
        file.truncate(2**31)
    reason = "is larger than 2 GiB, which protobuf cannot read"
    assert error_of_reading(path, binary=True) == f"{path}: {reason}"

    monkeypatch.setattr(text, "MAX_BYTES", 10)
    with pytest.raises(CaffeError, match="cannot be written: 14 bytes are more than the 2 GiB"):
        write_binary(tmp_path / "new", NetParameter(name="twelve bytes"))
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not OFFICIAL.exists(), reason=f"needs {OFFICIAL}")
def test_the_official_models_keep_their_settings() -> None:
    net = read_binary(OFFICIAL / "caffe_lenet5_sparse.caffemodel", NetParameter)
    layers = {layer.name: layer for layer in net.layer}
    convolutions = [layers[name].cconvolution_param for name in ("conv1", "conv2")]
    products = [layers[name].cinner_product_param for name in ("ip1", "ip2")]
    assert [param.c_rate for param in convolutions] == [2, 3]
    assert [param.c_rate for param in products] == [4, 2.5]
    assert {param.iter_stop for param in [*convolutions, *products]} == {14000}
