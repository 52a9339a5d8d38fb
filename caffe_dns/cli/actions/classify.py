"""`dns classify` (python/classify.py)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click
import numpy as np

from caffe_dns.cli.image_flags import BGR
from caffe_dns.cli.images import load_array, numbers, permit, read_mean, use_device
from caffe_dns.errors import CaffeError
from caffe_dns.files import check_target, write_atomically
from caffe_dns.pycaffe.classifier import Classifier
from caffe_dns.pycaffe.images import load_image, to_npy


def run(
    input_file: str,
    output_file: str,
    model_def: str,
    pretrained_model: str,
    gpu: bool,
    mean_file: str,
    input_scale: float | None,
    raw_scale: float,
    channel_swap: str,
    allow_python_layers: bool,
    center_only: bool,
    images_dim: str,
    ext: str,
) -> None:
    """Do what `dns classify` is asked for, by the values of its flags."""
    if os.path.basename(output_file) in ("", ".", ".."):
        raise CaffeError(f"OUTPUT_FILE is '{output_file}', which names no file")
    # As numpy.save does, whatever the name.
    name = output_file if output_file.endswith(".npy") else f"{output_file}.npy"
    check_target(name, [input_file, pretrained_model, mean_file])
    permit(allow_python_layers)
    use_device(gpu)
    classifier = Classifier(
        model_def,
        pretrained_model,
        image_dims=numbers("images_dim", images_dim, 2),
        mean=read_mean(mean_file),
        input_scale=input_scale,
        raw_scale=raw_scale,
    )
    ((name_in, shape),) = classifier.transformer.inputs.items()
    is_gray = shape[1] == 1
    order = None if is_gray and channel_swap == BGR else numbers("channel_swap", channel_swap)
    if order is not None:
        classifier.transformer.set_channel_swap(name_in, order)
    images = _read(Path(input_file).expanduser(), ext, color=not is_gray)
    click.echo(f"Classifying {len(images)} inputs.")
    start = time.perf_counter()
    scores = classifier.predict(images, not center_only)
    click.echo(f"Done in {time.perf_counter() - start:.2f} s.")
    click.echo(f"Saving results into {output_file}")
    write_atomically(name, to_npy(scores))


def _read(path: Path, ending: str, color: bool) -> list[np.ndarray]:
    if os.path.isdir(path):
        click.echo(f"Loading folder: {path}")
        images = [load_image(file, color) for file in sorted(path.glob(f"*.{ending}"))]
        if not images:
            raise CaffeError(f"has no files that end in .{ending}", file=str(path))
        return images
    click.echo(f"Loading file: {path}")
    if path.suffix != ".npy":
        return [load_image(path, color)]
    array = load_array(str(path))
    if array.ndim != 4 or not array.size:
        raise CaffeError(
            f"has the shape {array.shape}; [N, H, W, channels] would be right", file=str(path)
        )
    return list(array.astype(np.float32))
