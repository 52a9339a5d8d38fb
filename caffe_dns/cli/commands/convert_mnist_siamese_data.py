"""`dns convert_mnist_siamese_data` (examples/siamese/convert_mnist_siamese_data.cpp)."""

from __future__ import annotations

import click

from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("input_image_file")
@click.argument("input_label_file")
@click.argument("output_db_file")
@runs("convert_mnist_siamese_data")
def command() -> None:
    """Make the LevelDB OUTPUT_DB_FILE of random pairs of MNIST's images, to train siamese nets.

    The label is 1 where both images show the same digit. As with Caffe's tool, only errors are
    logged.

    \b
    dns convert_mnist_siamese_data t10k-images-idx3-ubyte t10k-labels-idx1-ubyte pairs
    """
