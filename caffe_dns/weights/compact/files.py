"""Compact files of all versions: their first bytes, and the module that reads them."""

from __future__ import annotations

from pathlib import Path

from caffe_dns.errors import CaffeError
from caffe_dns.files.finite import check_finite
from caffe_dns.files.reading import open_file, read_file
from caffe_dns.weights.compact import lossless, shared, version_2
from caffe_dns.weights.compact.contents import Contents

ENDING = ".dnsz"
#: What all begin with; the number of the version follows, in the first two behind zeros.
SIGNATURE = b"dnsz"
_ZEROS = bytes(3)

_DECODERS = {module.VERSION: module.decode for module in (lossless, version_2, shared)}


def is_compact(path: str | Path) -> bool:
    """Whether a file begins like a compact one. Raises CaffeError when it cannot be opened."""
    try:
        with open_file(path) as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=str(path)) from None


def read(path: str | Path) -> Contents:
    """Read a compact file.

    Raises CaffeError when it is damaged, of another kind, or has a number that is not finite.
    """
    try:
        raw = read_file(path)
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=str(path)) from None
    try:
        contents = decode(raw)
        for layer, arrays in zip(contents.definition.layer, contents.blobs, strict=True):
            for place, array in enumerate(arrays):
                check_finite(array, f"array {place} of layer '{layer.name}'")
    except CaffeError as error:
        raise error.locate(file=str(path)) from None
    return contents


def decode(raw: bytes) -> Contents:
    """What the bytes of a compact file hold; raises CaffeError when they are damaged."""
    start = len(SIGNATURE) + 1
    if raw[: len(SIGNATURE)] != SIGNATURE or len(raw) < start:
        raise CaffeError("is not a compact model: it does not begin like one")
    if raw[start - 1 :].startswith(_ZEROS) and len(raw) >= start + len(_ZEROS):
        start += len(_ZEROS)
    version = raw[start - 1]
    if version not in _DECODERS:
        raise CaffeError(
            f"is a compact model of version {version}, which a later dns wrote: this one reads "
            f"versions {', '.join(map(str, _DECODERS))}"
        )
    return _DECODERS[version](raw[start:])


def encode(contents: Contents) -> bytes:
    """The bytes of a compact file, of version 3 where values are shared, or else of version 1."""
    small = shared.encode(contents)
    if small is not None:
        return SIGNATURE + bytes([shared.VERSION]) + small
    return SIGNATURE + _ZEROS + bytes([lossless.VERSION]) + lossless.encode(contents)
