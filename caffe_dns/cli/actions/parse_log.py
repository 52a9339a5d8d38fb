"""`dns parse_log` (tools/extra/parse_log.py)."""

from __future__ import annotations

import click

from caffe_dns.errors import CaffeError
from caffe_dns.reports.log_tables import save_tables


def run(logfile_path: str, output_dir: str, verbose: bool, delimiter: str) -> None:
    """Do what `dns parse_log` is asked for, by the values of its flags."""
    if len(delimiter) != 1 or delimiter in '\r\n"':
        raise CaffeError(f"-delimiter must be one character, not '{delimiter}'")
    for path, written in save_tables(logfile_path, output_dir, delimiter).items():
        if verbose:
            click.echo(f"Wrote {path}" if written else f"Not writing {path}; no lines to write")
