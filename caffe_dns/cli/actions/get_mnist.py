"""`dns get_mnist`."""

from __future__ import annotations

from pathlib import Path

import click

from caffe_dns import log
from caffe_dns.data.mnist import get_mnist
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError


def run(folder: str, padded: bool) -> None:
    """Do what `dns get_mnist` is asked for, by the values of its flags."""
    with log.silenced:
        try:
            get_mnist(Path(folder), padded=padded, say=lambda line: click.echo(on_disk(line)))
        except OSError as error:
            raise CaffeError(f"cannot be written: {error.strerror}", file=folder) from None
