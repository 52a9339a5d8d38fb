"""`dns export`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@flags.model
@flags.weights
@click.option(
    "--output", "output_file", default="", metavar="FILE", help="The file to write. Required."
)
@click.option(
    "--format",
    "format_name",
    default="",
    metavar="FORMAT",
    help="caffemodel, onnx, safetensors, compact, or a format of a plugin. Default: by the ending "
    "of the output.",
)
@click.option(
    "--definition", default="", metavar="FILE", help="Also write the matching deploy.prototxt."
)
@flags.bits(
    2,
    "Let the weights of each layer share 0 and 2 to the power of B values, B from 2 to 8, which "
    "makes a .dnsz smaller; auto finds a B for each layer by scores on the definition's test data.",
)
@click.option(
    "--iterations",
    default=50,
    show_default=True,
    metavar="N",
    help="How many test batches --bits auto scores.",
)
@flags.shrink
@flags.fold
@flags.batch
@flags.shape
@flags.level
@flags.stage
@flags.all_losses
@flags.python_layers
@flags.output
@flags.imports
@runs("export")
def command() -> None:
    """Save a trained or pruned model for use elsewhere: without masks, with standard layer types.

    \b
    .caffemodel   for stock Caffe, OpenCV and others; see --definition
    .onnx         for ONNX runtimes
    .safetensors  weights under PyTorch's names: conv1.weight, conv1.bias
    .dnsz         compact; given as --weights, it can become any of the others

    A table says how many bytes the model takes dense, pruned and compact. With --shrink or --fold,
    the model has other sizes or fewer layers, so its definition is written beside it, with the
    ending .prototxt. With --bits, outputs change slightly; `dns train --bits` before makes up for
    that.
    """
