"""`dns export`."""

from __future__ import annotations

import click

from caffe_dns.cli import definitions, flags
from caffe_dns.errors import CaffeError
from caffe_dns.export import compact
from caffe_dns.export.formats import export_formats, find_format, size_table
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.files import write_atomically
from caffe_dns.layers.base import Context


@click.command()
@flags.model
@flags.weights
@click.option("--output", default="", metavar="FILE", help="The file to write.")
@click.option(
    "--format",
    "format_name",
    default="",
    metavar="FORMAT",
    help=f"{', '.join(export_formats)}. Default: by the ending of the output.",
)
@click.option(
    "--definition", default="", metavar="FILE", help="Also write the matching deploy.prototxt."
)
@definitions.batch
@definitions.shape
@flags.level
@flags.stage
@definitions.all_losses
@flags.python_layers
@flags.imports
def command(
    model: str,
    weights: str,
    output: str,
    format_name: str,
    definition: str,
    batch: int,
    shape: tuple[str, ...],
    level: int,
    stage: str,
    all_losses: bool,
    allow_python_layers: bool,
) -> None:
    """Take a trained or pruned model away, without masks and with layers of the standard types.

    \b
    .caffemodel   for stock Caffe, OpenCV and others; see --definition
    .onnx         for ONNX runtimes
    .safetensors  weights under PyTorch's names: conv1.weight, conv1.bias
    .dnsz         compact; given as --weights, it becomes any other

    A table says how many bytes the model takes dense, pruned and compact.
    """
    if not weights:
        raise CaffeError("export needs model weights: --weights FILE")
    if not output:
        raise CaffeError("export needs a file to write: --output FILE")
    chosen = find_format(output, format_name)
    files = [file.strip() for file in weights.split(",")]
    if len(files) == 1 and compact.is_compact(files[0]):
        if model:
            raise CaffeError("brings its definition with it; leave --model out", file=files[0])
        plain = compact.read(files[0])
    else:
        if not model:
            raise CaffeError("export needs the definition of the weights: --model FILE")
        context = Context(allow_python_layers=allow_python_layers)
        described = definitions.read_deployment(
            model, batch, shape, level, stage, all_losses, context
        )
        try:
            plain = UnmaskedModel.load(described, weights, context)
        except CaffeError as error:
            raise error.locate(file=model) from None
    small = compact.to_bytes(plain)
    raw = small if chosen == "compact" else export_formats[chosen].to_bytes(plain)
    write_atomically(output, raw)
    if definition:
        write_atomically(definition, plain.definition.to_text().encode())
    for line in size_table(plain, files, len(small)):
        click.echo(line)
    click.echo(f"Wrote {output}: {len(raw):,} bytes")
