"""`dns time`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@flags.model
@click.option("--phase", default="", metavar="PHASE", help="TRAIN or TEST. Default: TRAIN.")
@flags.iterations
@flags.gpu
@flags.precision
@flags.threads
@flags.level
@flags.stage
@flags.no_surgery
@flags.python_layers
@flags.output
@flags.imports
@flags.unused("solver", "weights", "snapshot", "sigint_effect", "sighup_effect")
@runs("time")
def command() -> None:
    """Benchmark a model: the time and memory that each layer takes, and images per second.

    Layers are timed one by one, forward and backward. A table follows Caffe's log: `tops` is the
    memory of a layer's results, `kept` that of everything its backward pass needs, and `peak` the
    most that the layer allocates at once, measured on a GPU. Then whole passes are timed,
    reading the data included: as `dns train` runs them, without the update, or with -phase TEST as
    `dns test` does.
    """
