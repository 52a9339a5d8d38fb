"""`dns deploy`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@flags.model
@click.option("--output", default="", metavar="PROTOTXT", help="The definition to write. Required.")
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

    Data layers become inputs of the shape that the test net has, losses become probabilities named
    prob, and layers that only judge them, such as Accuracy, are left out. All layers are of the
    standard types, so that `dns` and stock Caffe read the file. Comments say what the data layers
    did to the data.
    """
