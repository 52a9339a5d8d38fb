"""`dns deploy`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@flags.model
@click.option("--output", default="", metavar="PROTOTXT", help="The definition to write.")
@flags.batch
@flags.shape
@flags.level
@flags.stage
@flags.all_losses
@flags.python_layers
@flags.imports
@runs("deploy")
def command() -> None:
    """Write the deploy.prototxt of a train_val.prototxt.

    Data layers become inputs of the test's shape, losses become probabilities named prob, and what
    only judges them goes. Layers are of the standard types, so that `dns` and stock Caffe read it;
    what the data layers did to the data stands in comments.
    """
