"""`dns test`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@flags.model
@flags.weights
@flags.iterations
@flags.gpu
@flags.precision
@flags.threads
@flags.level
@flags.stage
@flags.no_surgery
@flags.shrink
@flags.fold
@flags.sparse
@flags.python_layers
@flags.decode_on_gpu
@flags.output
@flags.imports
@click.option(
    "--ap_version",
    default="Integral",
    show_default=True,
    metavar="KIND",
    help="How a detector's precision is averaged: 11point, MaxIntegral or Integral.",
)
@flags.unused("solver", "snapshot", "phase", "sigint_effect", "sighup_effect")
@runs("test")
def command() -> None:
    """Score a model: the mean of every output over a number of test batches.

    A detector (DetectionEvaluate) is scored by mean average precision. For a pruned model, the
    command also says what is left of each layer. With --shrink or --fold, the reduced net is
    scored, and compared with the given one in size, time and predictions.
    """
