"""The formats of `dns export`: the table in which the modules beside this one register."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from caffe_dns.errors import CaffeError
from caffe_dns.export.model import BYTES_PER_VALUE, UnmaskedModel
from caffe_dns.registry import Registry

Writer = Callable[[UnmaskedModel], bytes]


@dataclass(frozen=True)
class ExportFormat:
    """A format: the file's ending, and the function that gives its bytes."""

    ending: str
    to_bytes: Callable[[UnmaskedModel], bytes]


export_formats: Registry[ExportFormat] = Registry("format", by_name=False)


def export_format(name: str, ending: str) -> Callable[[Writer], Writer]:
    """Decorator: register a function from a model to a file's bytes as the format `name`."""

    def enter(to_bytes: Writer) -> Writer:
        export_formats.add(name, ExportFormat(ending, to_bytes))
        return to_bytes

    return enter


def find_format(output: str, name: str = "") -> str:
    """The format of this name, or else of the file's ending. Raises CaffeError if none."""
    if name:
        export_formats[name]
        return name
    endings = {export_formats[known].ending: known for known in export_formats}
    ending = Path(output).suffix
    if ending not in endings:
        raise CaffeError(
            f"the ending does not name a format; {', '.join(endings)} do, or --format", file=output
        )
    return endings[ending]


def size_table(model: UnmaskedModel, given: list[str], compact_bytes: int) -> list[str]:
    """Lines about the size of a model: as given, dense, pruned and compact."""
    dense = model.total * BYTES_PER_VALUE
    pruned = model.kept * BYTES_PER_VALUE
    rows = [(f"given: {Path(file).name}", Path(file).stat().st_size) for file in given]
    rows += [
        (f"dense: {model.total:,} values of 4 bytes", dense),
        (f"pruned: {model.kept:,} of them not zero, without positions", pruned),
        ("compact: the same with positions and definition, compressed", compact_bytes),
    ]
    width = max(len(name) for name, _ in rows)
    share = 100 / dense if dense else 0.0
    return [
        f"{name:<{width}} {size:>15,} bytes {size * share:9.2f} % of dense" for name, size in rows
    ]
