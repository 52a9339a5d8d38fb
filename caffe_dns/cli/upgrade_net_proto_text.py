"""`dns upgrade_net_proto_text` (tools/upgrade_net_proto_text.cpp)."""

from __future__ import annotations

import click

from caffe_dns.proto.upgrade_files import upgrade_net_text


@click.command()
@click.argument("net_proto_file_in")
@click.argument("net_proto_file_out")
def command(net_proto_file_in: str, net_proto_file_out: str) -> int:
    """Write the net definition NET_PROTO_FILE_IN in today's form to NET_PROTO_FILE_OUT.

    The exit code is 1 when something had to be left out, which the log says.
    """
    return 0 if upgrade_net_text(net_proto_file_in, net_proto_file_out) else 1
