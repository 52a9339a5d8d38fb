"""`dns upgrade_solver_proto_text` (tools/upgrade_solver_proto_text.cpp)."""

from __future__ import annotations

import click

from caffe_dns.proto.upgrade_files import upgrade_solver_text


@click.command()
@click.argument("old_solver_proto_file_in")
@click.argument("solver_proto_file_out")
def command(old_solver_proto_file_in: str, solver_proto_file_out: str) -> None:
    """Write a solver definition in today's form to SOLVER_PROTO_FILE_OUT."""
    upgrade_solver_text(old_solver_proto_file_in, solver_proto_file_out)
