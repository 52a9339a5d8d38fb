"""`dns plot`."""

from __future__ import annotations

import click

from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("logs", nargs=-1, required=True, metavar="LOG...")
@click.option(
    "--output",
    default="",
    metavar="FILE",
    help="The picture: FILE.png, FILE.svg or FILE.html. Required.",
)
@runs("plot")
def command() -> None:
    """Draw the curves of training logs: losses, scores, and the sparsity of each layer.

    A LOG is what `dns train` or Caffe wrote to stderr. Several runs go into one picture. FILE.html
    is a page with charts to zoom into.
    """
