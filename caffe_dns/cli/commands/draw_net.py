"""`dns draw_net` (python/draw_net.py)."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("input_net_proto_file")
@click.argument("output_image_file")
@click.option(
    "--rankdir",
    default="LR",
    show_default=True,
    metavar="DIRECTION",
    help="Direction: LR (left to right), RL, TB (top to bottom) or BT.",
)
@click.option(
    "--phase",
    default="ALL",
    show_default=True,
    metavar="PHASE",
    help="Which layers to draw: TRAIN, TEST or ALL.",
)
@flags.switch("display_lrm", "Show the learning rate multipliers of layers with weights.")
@runs("draw_net")
def command() -> None:
    """Draw the graph of the net in INPUT_NET_PROTO_FILE.

    The ending of OUTPUT_IMAGE_FILE says how: .dot is the graph as text; .png, .svg, .pdf and others
    need the program dot of Graphviz.
    """
