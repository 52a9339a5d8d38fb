"""`dns report`."""

from __future__ import annotations

import click

from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--output", default="report.html", show_default=True, metavar="FILE", help="The page."
)
@runs("report")
def command() -> None:
    """Make one page of training runs, side by side if there are several.

    A RUN is the log of a training, or a folder with one. The page needs no other file and no
    network. It has the curves of losses, scores, rates and of what pruning left of each layer, and
    settings, versions and seeds.
    """
