"""`dns convert_cifar_data` (examples/cifar10/convert_cifar_data.cpp)."""

from __future__ import annotations

from caffe_dns.data.published import write_cifar


def run(input_folder: str, output_folder: str, db_type: str) -> None:
    """Do what `dns convert_cifar_data` is asked for, by the values of its flags."""
    write_cifar(input_folder, output_folder, db_type)
