"""What a name can stand for beside a file: pipes, devices, folders."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.files import reading
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.text import read_text


def test_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"all of it")
    assert reading.read_file(tmp_path / "a") == b"all of it"
    reading.check_file(tmp_path / "a")


def test_a_file_without_end_is_larger_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise MemoryError

    monkeypatch.setattr(reading, "open_file", lambda path: Endless())
    with pytest.raises(OSError, match="it is larger than what memory is left"):
        reading.read_file("sparse")


def test_counts_are_what_int_makes_numbers_of() -> None:
    for word in ("0", "007", "123456789", "٣"):
        assert reading.is_count(word) and int(word) >= 0
    for word in ("", "-1", "1.0", " 1", "²", "1234567890", "9" * 5000):
        assert not reading.is_count(word)


def test_reads_what_comes_through_a_pipe(tmp_path: Path) -> None:
    """As `dns summary --model <(sed ... net.prototxt)` gives one."""
    os.mkfifo(tmp_path / "pipe")
    content = b"x" * 300_000
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[content])
    writer.start()
    # Not before the other side has opened it: that is the shell's to see to.
    keeper = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        threading.Timer(0.2, os.close, [keeper]).start()
        assert reading.read_file(tmp_path / "pipe") == content
    finally:
        writer.join()
    with pytest.raises(OSError, match="a pipe, not a file"):
        reading.check_file(tmp_path / "pipe")


def test_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert reading.read_file(tmp_path / "pipe") == b""
    monkeypatch.setattr(reading, "PATIENCE", 0.1)
    silent = os.open(tmp_path / "pipe", os.O_RDWR)
    with pytest.raises(OSError, match="nothing came"):
        reading.read_file(tmp_path / "pipe")
    os.close(silent)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/dev/zero", "a device, not a file"),
        ("/dev/null", "a device, not a file"),
        (".", "Is a directory"),
        ("a\0b", "a NUL byte in it"),
        ("missing", "No such file"),
    ],
)
def test_says_what_is_no_file(name: str, message: str) -> None:
    with pytest.raises(OSError, match=message):
        reading.read_file(name)


def test_a_file_of_the_kernel_that_waits_for_news_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As /proc/kmsg does, which only the superuser may open."""

    class Waiting(io.BytesIO):
        def read(self, size: int | None = -1) -> None:  # type: ignore[override]
            return None

    monkeypatch.setattr(reading, "open_file", lambda path: Waiting())
    with pytest.raises(OSError, match="a device, not a file"):
        reading.read_file("kmsg")


@pytest.mark.parametrize("name", ["/dev/zero", ".", "a\0b", "missing"])
def test_definitions_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(CaffeError) as caught:
        read_text(name, NetParameter)
    assert "\n" not in str(caught.value)
