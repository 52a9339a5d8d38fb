"""`dns convert_mnist_data` (examples/mnist/convert_mnist_data.cpp)."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("input_image_file")
@click.argument("input_label_file")
@click.argument("output_db_file")
@flags.backend
@runs("convert_mnist_data")
def command() -> None:
    """Make the database OUTPUT_DB_FILE from MNIST's files, which must not be compressed.

    \b
    dns convert_mnist_data train-images-idx3-ubyte train-labels-idx1-ubyte mnist_train_lmdb
    """
