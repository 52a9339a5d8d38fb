"""How image files become a database: what `convert_imageset` and `convert_annoset` share."""

from __future__ import annotations

import click

from caffe_dns.cli import flags

#: The arguments and flags of Caffe's convert_imageset.
image_set_flags = flags.together(
    click.argument("rootfolder"),
    click.argument("listfile"),
    click.argument("db_name"),
    flags.switch("gray", "Treat images as grayscale ones."),
    flags.switch("shuffle", "Randomly shuffle the order of images and their labels."),
    flags.backend,
    click.option("--resize_width", default=0, help="Width images are resized to."),
    click.option("--resize_height", default=0, help="Height images are resized to."),
    flags.switch("check_size", "Check that all images have the same size."),
    flags.switch("encoded", "Save encoded images, not their pixels."),
    click.option(
        "--encode_type", default="", metavar="TYPE", help="Encode images as png, jpg and so on."
    ),
)
