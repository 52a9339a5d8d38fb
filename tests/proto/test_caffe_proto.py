"""proto/caffe.proto against BVLC Caffe's messages, and the generated module against the file."""

import csv
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from caffe_dns.proto import caffe_pb2
from caffe_dns.proto.fields import is_repeated, is_required
from caffe_dns.proto.values import print_value
from tests.oracle import GOLDEN

ROOT = Path(__file__).parents[2]

#: What the surgery forks and we add to BVLC's messages.
ADDED_FIELDS = {
    "BlobProto": {"raw_data_type", "raw_data"},
    "SolverParameter": {
        "surgery_stop_iter",
        "surgery_iter_gamma",
        "surgery_iter_power",
        "surgery_stage",
    },
    "SolverState": {
        "data_position",
        "surgery_moments",
        "learned_net_sha256",
        "random_seed",
        "shared_values",
    },
    "LayerParameter": {"cconvolution_param", "cinner_product_param", "extension_param"},
    "ConvolutionParameter": {"sparsity_term", "weight_mask_filler", "threshold"},
    "InnerProductParameter": {"sparsity_term", "weight_mask_filler", "threshold"},
    "PriorBoxParameter": {"use_default_aspect_ratio"},
    # SSD has one, MobileNet-YOLO several.
    "TransformationParameter": {"resize_param"},
}
ADDED_MESSAGES = {
    "CConvolutionParameter",
    "CInnerProductParameter",
    "DataPosition",
    "ExtensionParameter",
    "SurgeryMoments",
    "SurgeryStage",
    "LayerSurgery",
    "LayerLatency",
    "SharedValues",
}


#: Numbers of what forks other than those with surgery add.
FORK_NUMBERS = range(2100, 2500)


@cache
def fork_types() -> set[str]:
    """The messages and enums that nothing but fields of forks is made of."""
    found: set[str] = set()
    new = [
        field
        for message in caffe_pb2.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
        if field.number in FORK_NUMBERS
    ]
    while new:
        typed = [field.message_type or field.enum_type for field in new]
        names = {t.full_name for t in typed if t is not None} - found - bvlc_types()
        found |= names
        messages = [f.message_type for f in new if f.message_type is not None]
        new = [f for m in messages if m.full_name in names for f in m.fields]
    return found


def bvlc_types() -> set[str]:
    return {f"caffe_dns.{row[0]}" for row in recorded_rows("caffe_fields.tsv")}


def short(name: str) -> str:
    return name.removeprefix("caffe_dns.")


def messages_and_enums() -> Iterator[Descriptor | EnumDescriptor]:
    file = caffe_pb2.DESCRIPTOR
    yield from file.enum_types_by_name.values()
    for message in file.message_types_by_name.values():
        yield message
        yield from message.enum_types


def default_text(field: FieldDescriptor) -> str:
    if not field.has_default_value:
        return "-"
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return str(field.default_value)
    return print_value(field, field.default_value)


def field_row(field: FieldDescriptor) -> tuple[str, ...]:
    typed = field.message_type or field.enum_type
    type_name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    label = "repeated" if is_repeated(field) else "required" if is_required(field) else "optional"
    return (
        short(field.containing_type.full_name),
        field.name,
        str(field.number),
        label,
        short(typed.full_name) if typed is not None else type_name,
        default_text(field),
        "packed" if field.GetOptions().packed else "-",
    )


def our_rows() -> set[tuple[str, ...]]:
    rows: set[tuple[str, ...]] = set()
    for entry in messages_and_enums():
        name = short(entry.full_name)
        if name.partition(".")[0] in ADDED_MESSAGES or entry.full_name in fork_types():
            continue
        if isinstance(entry, EnumDescriptor):
            values = [value for value in entry.values if value.number not in FORK_NUMBERS]
            rows |= {(name, v.name, str(v.number), "enum", "-", "-", "-") for v in values}
        else:
            added = ADDED_FIELDS.get(name, set())
            rows |= {
                field_row(field)
                for field in entry.fields
                if field.name not in added and field.number not in FORK_NUMBERS
            }
    return rows


@cache
def recorded_rows(name: str) -> set[tuple[str, ...]]:
    with open(GOLDEN / "proto" / name, newline="") as file:
        _, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return {tuple(row) for row in rows}


def test_every_field_of_bvlc_caffe_is_there_and_nothing_else() -> None:
    expected = recorded_rows("caffe_fields.tsv")
    assert len(expected) > 500
    assert expected - our_rows() == set()
    # Of SSD, what is supported.
    assert our_rows() - expected - recorded_rows("ssd_fields.tsv") == set()


def test_the_additions_are_there_with_numbers_of_their_own() -> None:
    descriptors = caffe_pb2.DESCRIPTOR.message_types_by_name
    assert set(descriptors) >= ADDED_MESSAGES
    for message, names in ADDED_FIELDS.items():
        for name in names:
            assert name in descriptors[message].fields_by_name


def test_the_generated_module_is_that_of_the_definition() -> None:
    checksum = hashlib.sha256((ROOT / "proto" / "caffe.proto").read_bytes()).hexdigest()
    module = (ROOT / "caffe_dns" / "proto" / "caffe_pb2.py").read_text()
    assert module.endswith(f"# SHA-256 of proto/caffe.proto: {checksum}\n"), (
        "caffe_pb2.py is older than proto/caffe.proto: run tools/compile_proto"
    )


def test_compile_proto_says_what_it_needs(tmp_path: Path) -> None:
    script = ROOT / "tools" / "compile_proto"
    # Without site-packages there is no grpcio-tools.
    result = subprocess.run(
        [sys.executable, "-I", "-S", str(script)], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 1
    assert result.stderr.startswith("compile_proto needs protoc 25.1: pip install grpcio-tools==")
    assert result.stderr.count("\n") == 1
