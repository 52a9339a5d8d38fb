"""`dns device_query` (tools/caffe.cpp)."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@click.option(
    "--gpu",
    default="all",
    show_default=True,
    metavar="IDS",
    help="Which GPUs: 0, several separated by commas, or 'all'.",
)
@flags.output
@flags.unused("solver", "model", "weights", "snapshot", "phase", "level", "stage", "iterations")
@flags.unused("sigint_effect", "sighup_effect")
@runs("device_query")
def command() -> None:
    """Show the GPUs: their names, memory, and limits of blocks and grids."""
