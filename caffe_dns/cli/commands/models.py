"""`dns models`."""

from __future__ import annotations

import click

from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@runs("models")
def command() -> None:
    """Copy the definitions of nets, solvers and recipes to models/NAME in the current folder.

    Without names, all of them. Existing files are left as they are.
    """
