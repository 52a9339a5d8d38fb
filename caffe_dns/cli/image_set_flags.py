"""How image files become a database: what `convert_imageset` and `convert_annoset` share."""

from __future__ import annotations

import click

from caffe_dns.cli import flags

#: The arguments and flags of Caffe's convert_imageset.
image_set_flags = flags.together(
    click.argument("rootfolder"),
    click.argument("listfile"),
    click.argument("db_name"),
    flags.switch("gray", "Read images as grayscale."),
    flags.switch("shuffle", "Randomly shuffle the order of images and their labels."),
    flags.backend,
    click.option(
        "--resize_width",
        default=0,
        metavar="PIXELS",
        help="Resize images to this width; --resize_height is needed as well.",
    ),
    click.option(
        "--resize_height",
        default=0,
        metavar="PIXELS",
        help="Resize images to this height; --resize_width is needed as well.",
    ),
    flags.switch("check_size", "Check that all images have the same size."),
    flags.switch("encoded", "Store the encoded images instead of their pixels."),
    click.option(
        "--encode_type",
        default="",
        metavar="TYPE",
        help="Encode images as png, jpg and so on. Default: as the files are.",
    ),
)
