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
    help="The labels of the names in annotation files (a LabelMap).",
)
@flags.switch("check_label", "Check that the label map has no name and no label twice.")
@click.option("--min_dim", default=0, help="Length to which shorter sides are resized.")
@click.option("--max_dim", default=0, help="Length to which longer sides are resized.")
@runs("convert_annoset")
def command() -> None:
    """Make the database DB_NAME of images and the objects in them, as AnnotatedData reads it.

    Each line of LISTFILE is the file name of an image and a label, or for detection that of an
    annotation; ROOTFOLDER is put before both:

    \b
    dns convert_annoset --anno_type=detection --label_map_file=labels.prototxt \\
        --encode_type=jpg VOCdevkit/ test.txt db
    """
