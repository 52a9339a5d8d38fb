"""`dns upgrade_net_proto_binary` (tools/upgrade_net_proto_binary.cpp)."""

from __future__ import annotations

from caffe_dns.proto.upgrade_files import upgrade_net_binary


def run(net_proto_file_in: str, net_proto_file_out: str) -> int:
    """Do what `dns upgrade_net_proto_binary` is asked for, by the values of its flags."""
    return 0 if upgrade_net_binary(net_proto_file_in, net_proto_file_out) else 1
