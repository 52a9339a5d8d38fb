"""`dns convert_mnist_data` (examples/mnist/convert_mnist_data.cpp)."""

from __future__ import annotations

from caffe_dns.data.published import read_mnist, write_mnist


def run(input_image_file: str, input_label_file: str, output_db_file: str, backend: str) -> None:
    """Do what `dns convert_mnist_data` is asked for, by the values of its flags."""
    write_mnist(*read_mnist(input_image_file, input_label_file), output_db_file, backend)
