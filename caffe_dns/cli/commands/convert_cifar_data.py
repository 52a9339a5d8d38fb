"""`dns convert_cifar_data` (examples/cifar10/convert_cifar_data.cpp)."""

from __future__ import annotations

import click

from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("input_folder")
@click.argument("output_folder")
@click.argument("db_type")
@runs("convert_cifar_data")
def command() -> None:
    """Make cifar10_train_DB_TYPE and cifar10_test_DB_TYPE in OUTPUT_FOLDER from CIFAR-10.

    INPUT_FOLDER holds the files of the binary version: data_batch_1.bin to data_batch_5.bin and
    test_batch.bin. DB_TYPE is lmdb or leveldb.
    """
