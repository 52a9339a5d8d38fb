"""`dns demo`: what it has run; the commands themselves have tests of their own."""

from __future__ import annotations

import subprocess

import pytest

from tests.cli.harness import run

COMMANDS = ["models", "get_mnist", "train", "train", "test", "test"]


@pytest.mark.parametrize(("fails_at", "code"), [(None, 0), (2, 3)])
def test_runs_each_command_until_one_fails(
    fails_at: int | None,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """And says to each what glog's flags said to it."""
    calls: list[tuple[str, str | None]] = []

    def call(words: list[str], env: dict[str, str]) -> int:
        calls.append((words[3], env.get("GLOG_minloglevel")))
        return 3 if len(calls) - 1 == fails_at else 0

    monkeypatch.setattr(subprocess, "call", call)
    assert run(["demo", "-minloglevel=1"], capfd).code == code
    expected = COMMANDS if fails_at is None else COMMANDS[: fails_at + 1]
    assert calls == [(command, "1") for command in expected]
