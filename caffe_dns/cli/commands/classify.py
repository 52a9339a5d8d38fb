"""`dns classify` (python/classify.py)."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.image_flags import image_flags
from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("input_file")
@click.argument("output_file")
@image_flags
@flags.switch("center_only", "Score only the centre of each image, not the mean of ten crops.")
@click.option(
    "--images_dim",
    default="256,256",
    show_default=True,
    metavar="H,W",
    help="The size in pixels to which images are resized before they are cropped.",
)
@click.option(
    "--ext",
    default="jpg",
    show_default=True,
    metavar="ENDING",
    help="The ending of image files in a folder.",
)
@runs("classify")
def command() -> None:
    """Classify images, and write their scores [images, classes] to OUTPUT_FILE, a .npy file.

    INPUT_FILE is an image, a folder of images, or a .npy file of images [N, H, W, channels] in RGB
    with values from 0 to 1. The images of a folder are taken in the order of their names.

    \b
    dns classify cat.jpg scores.npy --model_def deploy.prototxt \\
      --pretrained_model x.caffemodel
    """
