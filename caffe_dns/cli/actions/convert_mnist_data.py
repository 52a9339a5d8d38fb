"""`dns convert_mnist_data` (examples/mnist/convert_mnist_data.cpp)."""

from __future__ import annotations

from caffe_dns.data.published import IMAGES_MAGIC, LABELS_MAGIC, read_file, read_idx, write_mnist
from caffe_dns.errors import CaffeError


def run(input_image_file: str, input_label_file: str, output_db_file: str, backend: str) -> None:
    """Do what `dns convert_mnist_data` is asked for, by the values of its flags."""
    files = []
    for path, magic in ((input_image_file, IMAGES_MAGIC), (input_label_file, LABELS_MAGIC)):
        data = read_file(path)
        try:
            read_idx(data, magic)
        except CaffeError as error:
            raise error.locate(file=path) from None
        files.append(data)
    write_mnist(files[0], files[1], output_db_file, backend)
