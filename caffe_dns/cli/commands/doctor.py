"""`dns doctor`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@click.option(
    "--solver",
    default="",
    metavar="PROTOTXT",
    help="Also check the training that this solver defines.",
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

    Prints a line for each finding: `ok`, `note` or `wrong`, and after a dash what to do. It checks
    the installation and the GPUs; with --solver also the files that the solver and its nets name,
    the nets, their weights, a batch, a few iterations, and the place of snapshots. No file is left
    behind. The exit code is 1 when something is wrong. `--quiet` leaves out what is ok.
    """
