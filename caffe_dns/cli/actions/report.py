"""`dns report`."""

from __future__ import annotations

import click

from caffe_dns.cli.definitions import parse_shapes
from caffe_dns.errors import CaffeError
from caffe_dns.export.inputs import ItemShape
from caffe_dns.files import write_atomically
from caffe_dns.reports.page.render import check_page, render
from caffe_dns.reports.page.run import Entry, add_costs, sections
from caffe_dns.reports.run_files import RunFiles, find_run, run_titles
from caffe_dns.reports.run_net import load_run_net


def run(runs: tuple[str, ...], output: str, shape: tuple[str, ...]) -> None:
    """Do what `dns report` is asked for, by the values of its flags."""
    check_page(output)
    shapes = parse_shapes(shape)
    found = [find_run(path, name) for path, name in zip(runs, run_titles(runs), strict=True)]
    entries = [_entry(files, shapes) for files in found]
    title = ", ".join(files.name for files in found)
    write_atomically(output, render(title, sections(entries)))
    click.echo(f"Wrote {output}")


def _entry(files: RunFiles, shapes: list[ItemShape]) -> Entry:
    """The run with its net. What a log alone lacks is said on the page; files given must do."""
    entry = Entry(files.log)
    try:
        entry.net = load_run_net(files, shapes)
    except CaffeError as error:
        if files.weights_given or shapes:
            raise
        entry.trouble = f"The net is not shown: {error}"
    add_costs(entry)
    return entry
