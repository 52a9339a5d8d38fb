"""`dns compute_image_mean` (tools/compute_image_mean.cpp)."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("input_db")
@click.argument("output_file", required=False)
@flags.backend
@runs("compute_image_mean")
def command() -> None:
    """Compute the mean image of the database INPUT_DB, and write it to OUTPUT_FILE if given.

    \b
    dns compute_image_mean train_lmdb mean.binaryproto
    """
