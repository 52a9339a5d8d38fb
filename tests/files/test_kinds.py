"""Files that are something else than their names say: what they are is said."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_dns.data.db import open_database
from caffe_dns.data.transform import read_mean
from caffe_dns.errors import CaffeError
from caffe_dns.files.hdf5 import open_hdf5
from caffe_dns.files.kinds import other_kind
from caffe_dns.proto.caffe_pb2 import NetParameter, SolverState
from caffe_dns.proto.text import read_binary, read_text

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html lang='en'></html>\n"


def zipped(content: bytes, folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a", content)
    return (folder / "a.zip").read_bytes()


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def encoded(ending: str) -> bytes:
    return cv2.imencode(ending, np.zeros((2, 2, 3), np.uint8))[1].tobytes()


def test_kinds(tmp_path: Path) -> None:
    net = b'name: "a"\n'
    for content, said in (
        (POINTER, "Git LFS"),
        (PAGE, "web page"),
        (b"\xef\xbb\xbf<HTML>", "web page"),
        (gzip.compress(net), "gzip"),
        (bz2.compress(net), "bzip2"),
        (lzma.compress(net), "xz"),
        (zipped(net, tmp_path), "ZIP"),
        (saved(np.zeros(3)), "array_to_blobproto"),
        (encoded(".png"), "image (PNG)"),
        (encoded(".jpg"), "image (JPEG)"),
    ):
        assert said in (other_kind(content) or "")
    for content in (net, b"", b"version: 1", b"\x89HDF\r\n", b"\x0a\x05LeNet"):
        assert other_kind(content) is None


def open_as_hdf5(path: Path) -> None:
    with open_hdf5(str(path)):
        pass


def open_as_lmdb(path: Path) -> None:
    folder = path.with_suffix(".lmdb")
    folder.mkdir()
    path.rename(folder / "data.mdb")
    open_database(str(folder), "lmdb", announce=False)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_text(path, NetParameter),
        lambda path: read_binary(path, NetParameter),
        lambda path: read_binary(path, SolverState),
        lambda path: read_mean(str(path)),
        open_as_hdf5,
        open_as_lmdb,
    ],
    ids=["definition", "model", "state", "mean", "hdf5", "lmdb"],
)
@pytest.mark.parametrize("content", [POINTER, PAGE])
def test_whatever_was_wanted(
    read: Callable[[Path], object], content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CaffeError) as caught:
        read(path)
    assert str(other_kind(content)) in str(caught.value)
    assert str(tmp_path) in str(caught.value)
