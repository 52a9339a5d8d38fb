"""`dns export`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@flags.model
@flags.weights
@click.option("--output", "output_file", default="", metavar="FILE", help="The file to write.")
@click.option(
    "--format",
    "format_name",
    default="",
    metavar="FORMAT",
    help="caffemodel, onnx, safetensors, compact or what a plugin brings. Default: by the ending "
    "of the output.",
)
@click.option(
    "--definition", default="", metavar="FILE", help="Also write the matching deploy.prototxt."
)
@flags.bits(
    2,
    "Let the weights of each layer share 2 to the power of B values, B from 2 to 8, and 0: for a "
    ".dnsz of few bytes; auto finds a B for each, by what the definition's test data score.",
)
@click.option(
    "--iterations", default=50, show_default=True, help="The test batches that --bits auto scores."
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
    """Take a trained or pruned model away, without masks and with layers of the standard types.

    \b
    .caffemodel   for stock Caffe, OpenCV and others; see --definition
    .onnx         for ONNX runtimes
    .safetensors  weights under PyTorch's names: conv1.weight, conv1.bias
    .dnsz         compact; given as --weights, it becomes any other

    A table says how many bytes the model takes dense, pruned and compact. With --shrink, units and
    filters that no output depends on are left out, for the same outputs; with --fold, layers that
    the weights before them can stand for. The definition then stands beside the model, as FILE with
    the ending .prototxt. With --bits, outputs change somewhat; training with dns train --bits first
    makes up for that.
    """
