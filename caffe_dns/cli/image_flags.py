"""How images become a net's input: the flags that `classify` and `detect` share."""

from __future__ import annotations

import click

from caffe_dns.cli import flags

#: The order of channels unless another is given.
BGR = "2,1,0"
#: The flags of BVLC's classify.py and detect.py for net, weights, device and transformation.
image_flags = flags.together(
    click.option(
        "--model_def", required=True, metavar="PROTOTXT", help="The net's deploy.prototxt."
    ),
    click.option("--pretrained_model", required=True, metavar="FILE", help="Its trained weights."),
    flags.switch("gpu", "Run on the GPU."),
    click.option(
        "--mean_file",
        default="",
        metavar="NPY",
        help="The mean to subtract, an array [channels, height, width]. Default: none.",
    ),
    click.option(
        "--input_scale",
        type=float,
        metavar="FACTOR",
        help="Multiply the input by this, after the mean is subtracted. Default: 1.",
    ),
    click.option(
        "--raw_scale",
        type=float,
        default=255.0,
        show_default=True,
        metavar="FACTOR",
        help="Multiply the image, whose values are from 0 to 1, by this, before the mean is "
        "subtracted.",
    ),
    click.option(
        "--channel_swap",
        default=BGR,
        show_default=True,
        metavar="ORDER",
        help="The order of channels: 2,1,0 turns RGB into BGR; '' leaves it. Nets for gray images "
        "ignore the default.",
    ),
    flags.python_layers,
)
