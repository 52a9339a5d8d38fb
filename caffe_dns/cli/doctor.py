"""`dns doctor`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@click.option(
    "--solver", default="", metavar="PROTOTXT", help="Also try the training that this defines."
)
@flags.weights
@flags.gpu
@flags.precision
@flags.level
@flags.stage
@flags.no_surgery
@flags.python_layers
@flags.output
@flags.imports
@runs("doctor")
def command() -> None:
    """Find out what is wrong before a training begins, and what to do about it.

    A line for each finding: `ok`, `note` or `wrong`, then after a dash what to do. Looked at are
    the installation and the GPUs; with --solver the files that it and its nets name, the nets,
    their weights, a batch, a few iterations, and where snapshots go. Nothing is trained that
    stays. The exit code is 1 when something is wrong. `--quiet` leaves out what is ok.
    """
