"""`dns upgrade_solver_proto_text` (tools/upgrade_solver_proto_text.cpp)."""

from __future__ import annotations

from caffe_dns.proto.upgrade_files import upgrade_solver_text


def run(old_solver_proto_file_in: str, solver_proto_file_out: str) -> None:
    """Do what `dns upgrade_solver_proto_text` is asked for, by the values of its flags."""
    upgrade_solver_text(old_solver_proto_file_in, solver_proto_file_out)
