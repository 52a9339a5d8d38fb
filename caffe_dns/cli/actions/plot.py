"""`dns plot`."""

from __future__ import annotations

import click

from caffe_dns.errors import CaffeError
from caffe_dns.files import write_atomically
from caffe_dns.reports import charts
from caffe_dns.reports.curves import Run, read_run, run_names
from caffe_dns.reports.curves_chart import draw
from caffe_dns.reports.page.curves import curve_section
from caffe_dns.reports.page.render import check_libraries, render


def run(logs: tuple[str, ...], output: str) -> None:
    """Do what `dns plot` is asked for, by the values of its flags."""
    if not output:
        raise CaffeError("plot needs a file to draw into: --output FILE.png")
    form = charts.form_of(output)
    check = check_libraries if form == "html" else charts.check_matplotlib
    check()
    paths = list(logs)
    runs = [read_run(path, name) for path, name in zip(paths, run_names(paths), strict=True)]
    write_atomically(output, _picture(runs, form))
    click.echo(f"Wrote {output}")


def _picture(runs: list[Run], form: str) -> bytes:
    if form == "html":
        return render(", ".join(run.name for run in runs), [curve_section(runs)])
    return charts.save(draw(runs), form)
