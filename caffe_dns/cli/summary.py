"""`dns summary`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@flags.model
@flags.weights
@click.option("--phase", default="TEST", show_default=True, help="TRAIN or TEST.")
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
    """Show the layers of a net: output shapes, parameters, multiplications.

    With weights, also how many parameters are not zero, and how many multiply-accumulates (MACs)
    use one that is not. MACs are those of convolutions and inner products for one item. With
    --shrink or --fold, the layers are those of the net made by these, and a table compares the two.
    """
