"""A folder to work in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.workspace import Workspace


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path)
