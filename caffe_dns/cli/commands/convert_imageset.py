"""`dns convert_imageset` (tools/convert_imageset.cpp)."""

from __future__ import annotations

import click

from caffe_dns.cli.image_set_flags import image_set_flags
from caffe_dns.cli.lazy import runs


@click.command()
@image_set_flags
@runs("convert_imageset")
def command() -> None:
    """Make the database DB_NAME from the image files that LISTFILE lists.

    Each line of LISTFILE has the name of a file in ROOTFOLDER, and a label:

    \b
    dns convert_imageset --resize_height=256 --resize_width=256 images/ train.txt db
    """
