"""tools/test_everywhere: what it counts, and that each setting is really in force."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests import programs

TOOL = Path(__file__).parents[1] / "tools" / "test_everywhere"
CHECKS = {
    "OMP_NUM_THREADS=4": "os.getcwd() != ROOT and os.environ['OMP_NUM_THREADS'] == '4'",
    "background shell": "signal.getsignal(signal.SIGINT) is signal.SIG_IGN",
    "folder with a space": "'/a folder/' in tests.__file__",
    "another user": "os.getuid() != 0 and os.getgid() != 0",
    "no network": "[name for _, name in socket.if_nameindex()] == ['lo']",
}
#: What a setting needs to be allowed, as a command and as whom to run it, without his groups.
NEEDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "another user": (
        [sys.executable, "-c", "import pytest, torch"],
        {"user": "nobody", "extra_groups": []},
    ),
    "no network": (["unshare", "--net", "ip", "link", "set", "lo", "up"], {}),
}


def run_under(
    settings: list[str], body: str, folder: Path, *flags: str
) -> subprocess.CompletedProcess[str]:
    """The tool with some settings and one file of tests, in a folder that all can read."""
    file = folder / "test_setting.py"
    imports = "import os, signal, socket\nimport pytest\nimport tests\n"
    file.write_text(f"{imports}\nROOT = {str(TOOL.parents[1])!r}\n\n{body}")
    chosen = [word for setting in settings for word in ("--only", setting)]
    command = [sys.executable, str(TOOL), *flags, *chosen, str(file), "-p", "no:timeout"]
    return subprocess.run(command, capture_output=True, text=True)


def allowed(setting: str) -> bool:
    command, more = NEEDS[setting]
    try:
        return subprocess.run(command, capture_output=True, **more).returncode == 0
    except OSError:
        return False


@pytest.mark.parametrize("setting", CHECKS)
def test_setting(setting: str) -> None:
    if setting in NEEDS and not allowed(setting):
        pytest.skip("this user may not, or the other has no access to this Python")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        body = f"def test_it() -> None:\n    assert {CHECKS[setting]}\n"
        done = run_under([setting], body, Path(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{setting}: 1 passed, 0 skipped, 0 failed in " in done.stdout


def test_what_fails_is_named_of_several_at_a_time(tmp_path: Path) -> None:
    body = (
        "def test_good() -> None: pass\n"
        "def test_bad() -> None: assert os.getcwd() == ''\n"
        "@pytest.mark.skip\ndef test_left_out() -> None: pass\n"
    )
    settings = ["plain", "OMP_NUM_THREADS=2"]
    done = run_under(settings, body, tmp_path, "--jobs", "2")
    assert done.returncode == 1
    *lines, last = done.stdout.splitlines()
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(settings)
    for line in lines:
        assert ": 1 passed, 1 skipped, 1 failed in " in line
        assert line.endswith("test_setting::test_bad")
    assert last == "settings: 2 failed"
    assert done.stderr.count("assert os.getcwd() == ''") >= 2


def test_no_test_is_nothing_to_rely_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = programs.load("test_everywhere", monkeypatch)
    monkeypatch.setattr(tool, "run", lambda *_: tool.Outcome(0, 0, [], 1.0))
    found = tool.describe(tool.SETTINGS[0], [])
    assert found == ("failed", "0 passed, 0 skipped, 0 failed in 1 s")
