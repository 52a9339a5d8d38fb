"""`dns convert_imageset` (tools/convert_imageset.cpp)."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("rootfolder")
@click.argument("listfile")
@click.argument("db_name")
@flags.switch("gray", "Treat images as grayscale ones.")
@flags.switch("shuffle", "Randomly shuffle the order of images and their labels.")
@flags.backend
@click.option("--resize_width", default=0, help="Width images are resized to.")
@click.option("--resize_height", default=0, help="Height images are resized to.")
@flags.switch("check_size", "Check that all images have the same size.")
@flags.switch("encoded", "Save encoded images, not their pixels.")
@click.option(
    "--encode_type", default="", metavar="TYPE", help="Encode images as png, jpg and so on."
)
@runs("convert_imageset")
def command() -> None:
    """Make the database DB_NAME of the image files that LISTFILE lists.

    Each line of LISTFILE is a file name, which ROOTFOLDER is put before, and a label:

    \b
    dns convert_imageset --resize_height=256 --resize_width=256 images/ train.txt db
    """
