"""`dns deploy`."""

from __future__ import annotations

import click

from caffe_dns import log
from caffe_dns.cli import definitions
from caffe_dns.encoding import encode
from caffe_dns.errors import CaffeError
from caffe_dns.files import check_target, write_atomically
from caffe_dns.layers.base import Context


def run(
    model: str,
    output: str,
    batch: int,
    shape: tuple[str, ...],
    level: int,
    stage: str,
    all_losses: bool,
    allow_python_layers: bool,
) -> None:
    """Do what `dns deploy` is asked for, by the values of its flags."""
    if not model:
        raise CaffeError("deploy needs a definition to start from: --model FILE")
    if not output:
        raise CaffeError("deploy needs a file to write: --output FILE")
    check_target(output, [model])
    context = Context(allow_python_layers=allow_python_layers)
    made = definitions.read_deployment(model, batch, shape, level, stage, all_losses, context)
    write_atomically(output, encode(made.to_text()))
    for remark in made.remarks:
        click.echo(log.visible(remark))
    click.echo(f"Wrote {output}: {len(made.param.layer)} layers")
