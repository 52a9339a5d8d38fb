"""`dns convert_annoset` (tools/convert_annoset.cpp of SSD's fork)."""

from __future__ import annotations

from caffe_dns.cli.actions.convert_imageset import arrange, make_image_set, write_database
from caffe_dns.data.annotation_files import READERS, read_groups, read_pairs
from caffe_dns.data.boxes import Size
from caffe_dns.data.image_list import ListedImage
from caffe_dns.data.label_map import read_label_map
from caffe_dns.errors import CaffeError, nearest
from caffe_dns.proto.caffe_pb2 import AnnotatedDatum, Datum

#: The label of an image's Datum where its objects have theirs.
_NO_LABEL = -1


def run(
    rootfolder: str,
    listfile: str,
    db_name: str,
    gray: bool,
    shuffle: bool,
    backend: str,
    anno_type: str,
    label_type: str,
    label_map_file: str,
    check_label: bool,
    min_dim: int,
    max_dim: int,
    resize_width: int,
    resize_height: int,
    check_size: bool,
    encoded: bool,
    encode_type: str,
) -> None:
    """Do what `dns convert_annoset` is asked for, by the values of its flags."""
    _check("anno_type", anno_type, ["classification", "detection"])
    _check("label_type", label_type, list(READERS))
    detection = anno_type == "detection"
    pairs = list(read_pairs(listfile))
    if not pairs:
        raise CaffeError("lists no images", file=listfile)
    labels = _read_labels(label_map_file, check_label) if detection else {}
    arrange(pairs, shuffle, encoded, encode_type)

    def annotate(index: int, datum: Datum, size: Size) -> AnnotatedDatum:
        record = AnnotatedDatum(datum=datum)
        if detection:
            path = rootfolder + pairs[index][1]
            record.annotation_group.extend(read_groups(path, label_type, size, labels))
            record.type = AnnotatedDatum.BBOX
        return record

    image_set = make_image_set(
        [
            ListedImage(name, _NO_LABEL if detection else _number(label, listfile))
            for name, label in pairs
        ],
        rootfolder,
        gray,
        resize_width,
        resize_height,
        encoded,
        encode_type,
        min_dim=max(0, min_dim),
        max_dim=max(0, max_dim),
        annotate=annotate,
    )
    write_database(image_set, db_name, backend, check_size, listfile)


def _read_labels(label_map_file: str, check_label: bool) -> dict[str, int]:
    """Labels by name."""
    if not label_map_file:
        raise CaffeError("-anno_type detection needs -label_map_file FILE")
    label_map = read_label_map(label_map_file, strict=check_label)
    return {item.name: item.label for item in label_map.item}


def _check(flag: str, value: str, known: list[str]) -> None:
    if value not in known:
        hint = nearest(value, known)
        raise CaffeError(f"-{flag} is '{value}'{hint}; {', '.join(known)} would be right")


def _number(label: str, listfile: str) -> int:
    try:
        return int(label)
    except ValueError:
        raise CaffeError(
            f"the label '{label}' is not a whole number (for annotation files, give -anno_type "
            "detection)",
            file=listfile,
        ) from None
