"""How images become a net's input: the flags that `classify` and `detect` share."""

from __future__ import annotations

import click

from caffe_dns.cli import flags

#: The order of channels unless another is given.
BGR = "2,1,0"
#: The flags of BVLC's classify.py and detect.py for net, weights, device and transformation.
image_flags = flags.together(
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
        default=BGR,
        show_default=True,
        help="The order of channels: 2,1,0 makes BGR of RGB, which nets for gray images take as "
        "they are; '' leaves them.",
    ),
    flags.python_layers,
)
