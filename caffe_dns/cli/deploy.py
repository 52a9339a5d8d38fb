"""`dns deploy`."""

from __future__ import annotations

import click

from caffe_dns.cli import definitions, flags
from caffe_dns.errors import CaffeError
from caffe_dns.files import write_atomically
from caffe_dns.layers.base import Context


@click.command()
@flags.model
@click.option("--output", default="", metavar="PROTOTXT", help="The definition to write.")
@definitions.batch
@definitions.shape
@flags.level
@flags.stage
@definitions.all_losses
@flags.python_layers
@flags.imports
def command(
    model: str,
    output: str,
    batch: int,
    shape: tuple[str, ...],
    level: int,
    stage: str,
    all_losses: bool,
    allow_python_layers: bool,
) -> None:
    """Write the deploy.prototxt of a train_val.prototxt.

    Data layers become inputs of the test's shape, losses become probabilities named prob, and what
    only judges them goes. Layers are of the standard types, so that `dns` and stock Caffe read it;
    what the data layers did to the data stands in comments.
    """
    if not model:
        raise CaffeError("deploy needs a definition to start from: --model FILE")
    if not output:
        raise CaffeError("deploy needs a file to write: --output FILE")
    context = Context(allow_python_layers=allow_python_layers)
    made = definitions.read_deployment(model, batch, shape, level, stage, all_losses, context)
    write_atomically(output, made.to_text().encode())
    for remark in made.remarks:
        click.echo(remark)
    click.echo(f"Wrote {output}: {len(made.param.layer)} layers")
