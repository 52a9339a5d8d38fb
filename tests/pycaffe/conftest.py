"""What the tests of the pycaffe interface share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from caffe_dns import log
from caffe_dns.pycaffe import mode as settings
from tests.user_code import LAYERS, fresh_imports


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with the module `user`, and settings that do not outlive the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "mode", settings.mode)
    (tmp_path / "user.py").write_text(LAYERS)
    before = vars(settings.mode).copy()
    quiet = log.set_quiet(True)
    settings.mode.quiet = True
    with fresh_imports():
        yield tmp_path
    vars(settings.mode).update(before)
    log.set_quiet(quiet)
