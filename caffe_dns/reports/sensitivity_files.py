"""The files that `dns sensitivity` writes: a table, a picture, a page and a definition."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_dns.files import write_atomically
from caffe_dns.files.writing import check_target
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.reports import charts, sensitivity
from caffe_dns.reports.page.render import check_libraries, render
from caffe_dns.reports.page.sensitivity import sections
from caffe_dns.surgery.sensitivity import Proposal, Study

_ENDINGS = ("csv", "png", "html", "prototxt")


def check_prefix(prefix: str, inputs: Sequence[str]) -> None:
    """Raise CaffeError when no files of this prefix can be made, or one would be of the inputs."""
    charts.check_matplotlib()
    check_libraries()
    for name in _names(prefix):
        check_target(name, inputs)


def save(prefix: str, study: Study, proposal: Proposal, definition: NetParameter) -> list[str]:
    """Write PREFIX.csv, .png, .html and .prototxt; returns their names."""
    title = f"Sensitivity of {definition.name or 'the net'}"
    contents = (
        sensitivity.to_csv(study),
        charts.save(sensitivity.draw(study, proposal), "png"),
        render(title, sections(study, proposal)),
        sensitivity.to_definition(definition, study, proposal).encode(),
    )
    names = _names(prefix)
    for name, content in zip(names, contents, strict=True):
        write_atomically(name, content)
    return names


def _names(prefix: str) -> list[str]:
    return [f"{prefix}.{ending}" for ending in _ENDINGS]
