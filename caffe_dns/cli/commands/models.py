"""`dns models`."""

from __future__ import annotations

import click

from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@runs("models")
def command() -> None:
    """Put definitions of nets, solvers and recipes into models/NAME of the current folder.

    Without names, all of them. Files that exist already are left as they are.
    """
