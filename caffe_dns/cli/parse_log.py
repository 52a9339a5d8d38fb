"""`dns parse_log` (tools/extra/parse_log.py)."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.errors import CaffeError
from caffe_dns.reports.log_tables import save_tables


@click.command()
@click.argument("logfile_path")
@click.argument("output_dir")
@flags.switch("verbose", "Say which files were written.")
@click.option(
    "--delimiter", default=",", show_default=True, metavar="CHAR", help="What separates columns."
)
def command(logfile_path: str, output_dir: str, verbose: bool, delimiter: str) -> None:
    """Make CSV tables of the training log LOGFILE_PATH in the folder OUTPUT_DIR.

    For train.log they are called train.log.train and train.log.test.
    """
    if len(delimiter) != 1 or delimiter in '\r\n"':
        raise CaffeError(f"-delimiter must be one character, not '{delimiter}'")
    for path, written in save_tables(logfile_path, output_dir, delimiter).items():
        if verbose:
            click.echo(f"Wrote {path}" if written else f"Not writing {path}; no lines to write")
