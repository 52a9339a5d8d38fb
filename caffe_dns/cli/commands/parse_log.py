"""`dns parse_log` (tools/extra/parse_log.py)."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("logfile_path")
@click.argument("output_dir")
@flags.switch("verbose", "Say which files were written.")
@click.option(
    "--delimiter", default=",", show_default=True, metavar="CHAR", help="What separates columns."
)
@runs("parse_log")
def command() -> None:
    """Make CSV tables of the training log LOGFILE_PATH in the folder OUTPUT_DIR.

    For train.log they are called train.log.train and train.log.test.
    """
