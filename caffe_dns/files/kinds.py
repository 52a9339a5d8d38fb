"""Recognises what a file really is when it is not what was expected."""

from __future__ import annotations

import codecs

#: By the first bytes, in small letters.
_KINDS = {
    b"version https://git-lfs": "this is a pointer of Git LFS; `git lfs pull` gets the file itself",
    b"<!doctype html": "this is a web page (HTML); download the file itself, not what shows it",
    b"<html": "this is a web page (HTML); download the file itself, not what shows it",
    b"pk\x03\x04": "this is a ZIP archive, or a file of PyTorch",
    b"\x1f\x8b": "this is compressed with gzip; unpack it",
    b"bzh": "this is compressed with bzip2; unpack it",
    b"\xfd7zxz": "this is compressed with xz; unpack it",
    b"7z\xbc\xaf": "this is a 7z archive; unpack it",
    b"rar!": "this is a RAR archive; unpack it",
    b"\x89png": "this is an image (PNG)",
    b"\xff\xd8\xff": "this is an image (JPEG)",
    b"\x93numpy": "this is an array of NumPy; caffe.io.array_to_blobproto makes a mean of it",
}
#: So many bytes tell.
HEAD = 64


def other_kind(head: bytes) -> str | None:
    """What is to be said of a file that begins so and is none of Caffe's, or None."""
    start = head[:HEAD].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    return next((said for first, said in _KINDS.items() if start.startswith(first)), None)
