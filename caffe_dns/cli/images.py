"""What `classify` and `detect` make of the flags in `image_flags`."""

from __future__ import annotations

import click
import numpy as np

from caffe_dns.errors import CaffeError
from caffe_dns.pycaffe.mode import allow_python_layers, set_mode_gpu


def numbers(flag: str, value: str, count: int | None = None) -> list[int] | None:
    """Whole numbers with commas; None for an empty value. Raises CaffeError for anything else."""
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
    """The array of numbers in a .npy file. Raises CaffeError for another kind of file."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror or error}", file=path) from None
    except (ValueError, EOFError) as error:
        raise CaffeError(f"is not a .npy file: {error}", file=path) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uif":
        raise CaffeError("is not a .npy file of numbers", file=path)
    return array


def use_device(gpu: bool) -> None:
    """Let nets run on the GPU, or on the CPU."""
    if gpu:
        set_mode_gpu()
    click.echo("GPU mode" if gpu else "CPU mode")


def permit(python_layers: bool) -> None:
    """Let definitions run the code of Python layers, or not."""
    allow_python_layers(python_layers)
