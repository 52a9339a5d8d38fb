"""`dns convert_mnist_siamese_data` (examples/siamese/convert_mnist_siamese_data.cpp)."""

from __future__ import annotations

import numpy as np

from caffe_dns.data.published import read_mnist, write_mnist_pairs


def run(input_image_file: str, input_label_file: str, output_db_file: str) -> None:
    """Do what `dns convert_mnist_siamese_data` is asked for, by the values of its flags."""
    files = read_mnist(input_image_file, input_label_file)
    write_mnist_pairs(*files, output_db_file, np.random.default_rng())
