"""`dns convert_annoset` (tools/convert_annoset.cpp of SSD's fork)."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.image_set_flags import image_set_flags
from caffe_dns.cli.lazy import runs


@click.command()
@image_set_flags
@click.option(
    "--anno_type",
    default="classification",
    show_default=True,
    metavar="KIND",
    help="What LISTFILE gives for each image: classification or detection.",
)
@click.option(
    "--label_type",
    default="xml",
    show_default=True,
    metavar="KIND",
    help="The format of annotation files: xml, json or txt.",
)
@click.option(
    "--label_map_file",
    default="",
    metavar="PROTOTXT",
    help="Which label each name in annotation files stands for (a LabelMap).",
)
@flags.switch("check_label", "Check that no name and no label occurs twice in the label map.")
@click.option(
    "--min_dim",
    default=0,
    metavar="PIXELS",
    help="Enlarge images until the shorter side is this long. Default: do not.",
)
@click.option(
    "--max_dim",
    default=0,
    metavar="PIXELS",
    help="Shrink images until the longer side is this long. Default: do not.",
)
@runs("convert_annoset")
def command() -> None:
    """Make the database DB_NAME of images and the objects in them, as AnnotatedData reads it.

    Each line of LISTFILE has the name of an image file in ROOTFOLDER and a label; for detection, in
    place of the label, the name of an annotation file in ROOTFOLDER:

    \b
    dns convert_annoset --anno_type=detection --label_map_file=labels.prototxt \\
        --encode_type=jpg VOCdevkit/ test.txt db
    """
