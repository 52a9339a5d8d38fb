"""`dns upgrade_solver_proto_text` (tools/upgrade_solver_proto_text.cpp)."""

from __future__ import annotations

import click

from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("old_solver_proto_file_in")
@click.argument("solver_proto_file_out")
@runs("upgrade_solver_proto_text")
def command() -> None:
    """Write a solver definition in today's form to SOLVER_PROTO_FILE_OUT."""
