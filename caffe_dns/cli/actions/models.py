"""`dns models`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

import caffe_dns
from caffe_dns.errors import CaffeError, nearest
from caffe_dns.files import write_atomically

_PACKAGE = Path(caffe_dns.__file__).resolve().parent
#: In an installed package, and in the project itself.
_PLACES = (_PACKAGE / "models", _PACKAGE.parent / "models")
_ENDINGS = (".prototxt", ".md")


def run(names: Sequence[str]) -> None:
    """Do what `dns models` is asked for, by the values of its flags."""
    source = next((place for place in _PLACES if place.is_dir()), None)
    if source is None:
        raise CaffeError("the models are not installed; the wheel of caffe-dns has them")
    known = sorted(folder.name for folder in source.iterdir() if folder.is_dir())
    for name in names:
        if name not in known:
            raise CaffeError(
                f"there is no model '{name}'{nearest(name, known)}; known: {', '.join(known)}"
            )
    for name in names or known:
        files = sorted(file for file in (source / name).iterdir() if file.suffix in _ENDINGS)
        new = [file for file in files if not Path("models", name, file.name).exists()]
        _copy(new, Path("models", name))
        there = f", {len(files) - len(new)} there already" if len(new) < len(files) else ""
        click.echo(f"models/{name}: {len(new)} written{there}")


def _copy(files: Sequence[Path], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            write_atomically(folder / file.name, file.read_bytes())
    except OSError as error:
        raise CaffeError(f"cannot be written: {error.strerror}", file=str(folder)) from None
