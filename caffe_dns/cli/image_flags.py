"""How images become a net's input: the flags that `classify` and `detect` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import numpy as np

from caffe_dns.cli import flags
from caffe_dns.errors import CaffeError
from caffe_dns.pycaffe.mode import allow_python_layers, set_mode_gpu

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--model_def", required=True, metavar="PROTOTXT", help="The net, as deployed."),
    click.option("--pretrained_model", required=True, metavar="FILE", help="Its trained weights."),
    flags.switch("gpu", "Run on the GPU."),
    click.option(
        "--mean_file", default="", metavar="NPY", help="The mean to subtract: [channels, h, w]."
    ),
    click.option("--input_scale", type=float, help="Multiply the input by this last."),
    click.option(
        "--raw_scale",
        type=float,
        default=255.0,
        show_default=True,
        help="Multiply the image, whose values are from 0 to 1, by this first.",
    ),
    click.option(
        "--channel_swap",
        default="2,1,0",
        show_default=True,
        help="The order of channels: 2,1,0 makes BGR of RGB; '' leaves them.",
    ),
    flags.python_layers,
)


def image_flags(function: F) -> F:
    """The flags of BVLC's classify.py and detect.py for net, weights, device and transformation."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


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
