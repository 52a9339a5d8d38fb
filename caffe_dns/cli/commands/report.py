"""`dns report`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--output", default="report.html", show_default=True, metavar="FILE", help="The page."
)
@flags.shape
@runs("report")
def command() -> None:
    """Make one page of training runs, side by side if there are several.

    A RUN is the log of a training, its solver, a snapshot or a prefix of snapshots, several of
    these separated by commas, or the folder that they are in. The run's other files are found from
    there.

    The page needs no other file and no network. It has curves of losses, scores, rates and of what
    pruning left of each layer; the net with shapes, parameters and multiplications; its cost before
    and after pruning; weights, thresholds and masks; settings, versions and seed.
    """
