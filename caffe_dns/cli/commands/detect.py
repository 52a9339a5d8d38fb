"""`dns detect` (python/detect.py)."""

from __future__ import annotations

import click

from caffe_dns.cli.image_flags import image_flags
from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("input_file")
@click.argument("output_file")
@image_flags
@click.option(
    "--crop_mode",
    default="selective_search",
    show_default=True,
    type=click.Choice(["list", "selective_search"]),
    help="Where the windows come from: the list in INPUT_FILE, or selective search.",
)
@click.option(
    "--context_pad",
    default=16,
    show_default=True,
    metavar="PIXELS",
    help="How much of the net's input, on each side, is what surrounds the window.",
)
@runs("detect")
def command() -> None:
    """Score windows of images, and write the scores to OUTPUT_FILE, a .csv or .h5 file.

    INPUT_FILE is a .csv file with the columns filename, ymin, xmin, ymax, xmax (-crop_mode list),
    or a .txt or .csv file that names images (-crop_mode selective_search). A .h5 file is one that
    pandas writes, and needs the packages pandas and tables.

    \b
    dns detect windows.csv scores.csv -crop_mode list --model_def deploy.prototxt …
    """
