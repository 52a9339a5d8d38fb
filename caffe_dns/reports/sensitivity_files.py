"""The files that `dns sensitivity` leaves: a table, a picture, a page and a definition."""

from __future__ import annotations

from pathlib import Path

from caffe_dns.errors import CaffeError
from caffe_dns.files import write_atomically
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.reports import charts, sensitivity
from caffe_dns.reports.page.render import check_libraries, render
from caffe_dns.reports.page.sensitivity import sections
from caffe_dns.surgery.sensitivity import Proposal, Study

_ENDINGS = ("csv", "png", "html", "prototxt")


def check_prefix(prefix: str) -> None:
    """Raise CaffeError when no files of this prefix can be made."""
    charts.check_matplotlib()
    check_libraries()
    folder = Path(f"{prefix}.csv").parent
    if not folder.is_dir():
        raise CaffeError(f"cannot be written: there is no folder {folder}", file=f"{prefix}.csv")


def save(prefix: str, study: Study, proposal: Proposal, definition: NetParameter) -> list[str]:
    """Write PREFIX.csv, .png, .html and .prototxt; returns their names."""
    title = f"Sensitivity of {definition.name or 'the net'}"
    contents = (
        sensitivity.to_csv(study),
        charts.save(sensitivity.draw(study, proposal), "png"),
        render(title, sections(study, proposal)),
        sensitivity.to_definition(definition, study, proposal).encode(),
    )
    names = [f"{prefix}.{ending}" for ending in _ENDINGS]
    for name, content in zip(names, contents, strict=True):
        write_atomically(name, content)
    return names
