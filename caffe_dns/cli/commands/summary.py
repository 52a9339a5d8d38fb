"""`dns summary`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@flags.model
@flags.weights
@click.option("--phase", default="TEST", show_default=True, metavar="PHASE", help="TRAIN or TEST.")
@flags.shape
@flags.shrink
@flags.fold
@flags.level
@flags.stage
@flags.python_layers
@flags.output
@flags.imports
@runs("summary")
def command() -> None:
    """Show the layers of a net: output shapes, parameters, multiply-accumulates (MACs).

    With weights, also how many parameters are not zero, and how many MACs use such a parameter.
    MACs are those of convolutions and inner products, for one item. With --shrink or --fold, the
    layers are those of the reduced net, and a table compares the two nets.
    """
