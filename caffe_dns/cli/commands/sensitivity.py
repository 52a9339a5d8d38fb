"""`dns sensitivity`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@flags.model
@flags.weights
@flags.iterations
@flags.gpu
@flags.threads
@flags.level
@flags.stage
@flags.python_layers
@flags.output
@flags.imports
@click.option(
    "--layers",
    default="",
    metavar="NAMES",
    help="Prune only these layers, several separated by commas. Default: all that have weights.",
)
@click.option(
    "--loss-of-accuracy",
    default=flags.DEFAULT_LOSS,
    show_default=True,
    metavar="LOSS",
    help="How much worse the proposed thresholds may make the score: 0.01 is one point of "
    "accuracy, or 1 % of a loss.",
)
@click.option(
    "--output",
    "prefix",
    default="",
    metavar="PREFIX",
    help="Write PREFIX.csv, PREFIX.png, PREFIX.html and PREFIX.prototxt.",
)
@runs("sensitivity")
def command() -> None:
    """Find out how far each layer of a trained model can be pruned.

    Without any training, one layer at a time is pruned to sparsities from 10 to 99 percent, and the
    model is scored on the given number of test batches. Prints a table of the scores, and proposes
    thresholds for all layers together; PREFIX.prototxt is the model definition with these.
    """
