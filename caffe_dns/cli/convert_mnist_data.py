"""`dns convert_mnist_data` (examples/mnist/convert_mnist_data.cpp)."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.data.published import IMAGES_MAGIC, LABELS_MAGIC, read_file, read_idx, write_mnist
from caffe_dns.errors import CaffeError


@click.command()
@click.argument("input_image_file")
@click.argument("input_label_file")
@click.argument("output_db_file")
@flags.backend
def command(
    input_image_file: str, input_label_file: str, output_db_file: str, backend: str
) -> None:
    """Make the database OUTPUT_DB_FILE of MNIST's files, which must not be compressed.

    \b
    dns convert_mnist_data train-images-idx3-ubyte train-labels-idx1-ubyte mnist_train_lmdb
    """
    files = []
    for path, magic in ((input_image_file, IMAGES_MAGIC), (input_label_file, LABELS_MAGIC)):
        data = read_file(path)
        try:
            read_idx(data, magic)
        except CaffeError as error:
            raise error.locate(file=path) from None
        files.append(data)
    write_mnist(files[0], files[1], output_db_file, backend)
