"""Applies the flags in `image_flags`, for `classify` and `detect`."""

from __future__ import annotations

import click
import numpy as np

from caffe_dns.device.selection import parse_gpus
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.files.finite import check_finite
from caffe_dns.files.reading import open_file
from caffe_dns.pycaffe.mode import allow_python_layers, set_mode_gpu


def numbers(flag: str, value: str, count: int | None = None) -> list[int] | None:
    """Whole numbers separated by commas; None if empty. Raises CaffeError for anything else."""
    if not value:
        return None
    try:
        found = [int(part) for part in value.split(",")]
    except ValueError:
        found = []
    if not found or count not in (None, len(found)):
        how_many = "whole numbers" if count is None else f"{count} whole numbers"
        raise CaffeError(f"-{flag} takes {how_many} with commas, not '{value}'")
    return found


def read_mean(path: str) -> np.ndarray | None:
    """The array in a .npy file; None without a name. Raises CaffeError for another kind of file."""
    return load_array(path) if path else None


def load_array(path: str) -> np.ndarray:
    """The array of finite numbers in a .npy file. Raises CaffeError for another kind of file."""
    try:
        with open_file(path) as file:
            array = np.load(file, allow_pickle=False)
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror or error}", file=path) from None
    except Exception as error:  # including zipfile's and tokenize's, which numpy passes on
        raise CaffeError(f"is not a .npy file: {first_line(error)}", file=path) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uif":
        raise CaffeError("is not a .npy file of numbers", file=path)
    try:
        check_finite(array, "the array")
    except CaffeError as error:
        raise error.locate(file=path) from None
    return array


def use_device(gpu: bool) -> None:
    """Run nets on the GPU or on the CPU. Raises CaffeError if there is no GPU."""
    if gpu:
        parse_gpus("0")
        set_mode_gpu()
    click.echo("GPU mode" if gpu else "CPU mode")


def permit(python_layers: bool) -> None:
    """Set whether definitions may run the code of Python layers."""
    allow_python_layers(python_layers)
