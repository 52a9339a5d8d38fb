"""`dns demo`."""

from __future__ import annotations

import click

from caffe_dns.cli.lazy import runs


@click.command()
@runs("demo")
def command() -> None:
    """Get MNIST, train LeNet-5, prune it, and score what is left; about 5 minutes on 2 cores.

    Everything goes to models/lenet and data/mnist of the current folder.
    """
