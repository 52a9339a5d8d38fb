"""`dns upgrade_net_proto_binary` (tools/upgrade_net_proto_binary.cpp)."""

from __future__ import annotations

import click

from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("net_proto_file_in")
@click.argument("net_proto_file_out")
@runs("upgrade_net_proto_binary")
def command() -> None:
    """Write the weights (.caffemodel) NET_PROTO_FILE_IN in today's form to NET_PROTO_FILE_OUT.

    The exit code is 1 when something had to be left out, which the log says.
    """
