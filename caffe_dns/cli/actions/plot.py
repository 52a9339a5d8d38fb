"""`dns plot`."""

from __future__ import annotations

import click

from caffe_dns.errors import CaffeError
from caffe_dns.files import write_atomically
from caffe_dns.reports.charts import check_matplotlib, form_of, render
from caffe_dns.reports.curves import read_run, run_names
from caffe_dns.reports.curves_chart import draw


def run(logs: tuple[str, ...], output: str) -> None:
    """Do what `dns plot` is asked for, by the values of its flags."""
    if not output:
        raise CaffeError("plot needs a file to draw into: --output FILE.png")
    form = form_of(output)
    check_matplotlib()
    paths = list(logs)
    runs = [read_run(path, name) for path, name in zip(paths, run_names(paths), strict=True)]
    title = ", ".join(run.name for run in runs)
    write_atomically(output, render(draw(runs), form, title))
    click.echo(f"Wrote {output}")
