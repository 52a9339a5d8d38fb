"""`dns get_mnist`."""

from __future__ import annotations

import click

from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("folder", default="data/mnist")
@click.option(
    "--padded",
    is_flag=True,
    help="Also write mnist_train_padded_lmdb, whose images have a border of zeros.",
)
@runs("get_mnist")
def command() -> None:
    """Fetch MNIST (11 MB) and write the two databases that the models for it read.

    They are mnist_train_lmdb and mnist_test_lmdb in FOLDER (default: data/mnist), record by record
    what convert_mnist_data makes of MNIST's files. Checksums of what is fetched are verified.
    """
