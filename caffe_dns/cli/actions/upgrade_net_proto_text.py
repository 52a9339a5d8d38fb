"""`dns upgrade_net_proto_text` (tools/upgrade_net_proto_text.cpp)."""

from __future__ import annotations

from caffe_dns.proto.upgrade_files import upgrade_net_text


def run(net_proto_file_in: str, net_proto_file_out: str) -> int:
    """Do what `dns upgrade_net_proto_text` is asked for, by the values of its flags."""
    return 0 if upgrade_net_text(net_proto_file_in, net_proto_file_out) else 1
