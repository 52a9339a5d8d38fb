"""`dns upgrade_net_proto_text` (tools/upgrade_net_proto_text.cpp)."""

from __future__ import annotations

import click

from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("net_proto_file_in")
@click.argument("net_proto_file_out")
@runs("upgrade_net_proto_text")
def command() -> None:
    """Write the net definition NET_PROTO_FILE_IN in today's form to NET_PROTO_FILE_OUT.

    The exit code is 1 when something had to be left out, which the log says.
    """
