"""Which files belong to a run."""

from __future__ import annotations

from pathlib import Path

from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError
from caffe_dns.reports.curves import read_lines, run_of_lines


def find_log(path: str) -> str:
    """The training log that a path stands for: itself, or the newest in the folder.

    Raises CaffeError where a folder has none.
    """
    folder = Path(on_disk(path))
    if not folder.is_dir():
        return path
    logs = sorted(
        (entry for entry in folder.iterdir() if entry.is_file() and ".log" in entry.suffixes),
        key=lambda entry: entry.stat().st_mtime,
        reverse=True,
    )
    for entry in logs:
        if not run_of_lines(read_lines(str(entry)), "").is_empty():
            return str(entry)
    raise CaffeError("has no training log (*.log)", file=path)
