"""`dns report`."""

from __future__ import annotations

import click

from caffe_dns.errors import CaffeError
from caffe_dns.files import write_atomically
from caffe_dns.files.writing import check_target
from caffe_dns.reports.curves import run_names
from caffe_dns.reports.page.render import check_libraries, render
from caffe_dns.reports.page.run import sections
from caffe_dns.reports.run_files import find_log
from caffe_dns.reports.run_log import read_run_log


def run(runs: tuple[str, ...], output: str) -> None:
    """Do what `dns report` is asked for, by the values of its flags."""
    if not output.lower().endswith((".html", ".htm")):
        raise CaffeError("a page's name ends in .html", file=output)
    check_libraries()
    check_target(output)
    logs = [find_log(path) for path in runs]
    found = [read_run_log(path, name) for path, name in zip(logs, run_names(logs), strict=True)]
    title = ", ".join(entry.run.name for entry in found)
    write_atomically(output, render(title, sections(found)))
    click.echo(f"Wrote {output}")
