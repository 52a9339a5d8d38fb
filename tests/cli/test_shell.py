"""Completion: what the shells are told."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from caffe_dns.cli.main import ACTIONS
from tests.cli.harness import complaint, run_well

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


def answers(words: str, capture: Capture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash is told of the last word, which may be empty."""
    for name, value in (
        ("_DNS_COMPLETE", "bash_complete"),
        ("COMP_WORDS", words),
        ("COMP_CWORD", str(words.count(" "))),
    ):
        monkeypatch.setenv(name, value)
    return run_well([], capture).out.splitlines()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("dns tr", ["plain,train"]),
        ("dns train -so", ["plain,-solver"]),
        ("dns train --so", ["plain,--solver"]),
        ("dns train -solver ", ["file,"]),
        ("dns train -solver s", ["file,s"]),
        ("dns train -solver=s", ["file,s"]),
        ("dns train --solver=s", ["file,s"]),
        ("dns train -solver a -weights b.caffemodel -sna", ["plain,-snapshot"]),
        ("dns train --tensorboard ", ["dir,"]),
        ("dns train -on-nan w", ["plain,warn"]),
        ("dns test -precision t", ["plain,tf32"]),
        ("dns test -iterations -5 -mod", ["plain,-model"]),
        ("dns convert_imageset -gray ", ["file,"]),
        ("dns convert_imageset -backend l", ["plain,lmdb", "plain,leveldb"]),
        ("dns convert_cifar_data in out ", ["plain,lmdb", "plain,leveldb"]),
        ("dns convert_imageset -nos", ["plain,-noshuffle"]),
        ("dns extract_features a b ", [""]),
        ("dns completion z", ["plain,zsh"]),
        ("dns nowhere ", []),
    ],
)
def test_answers(
    words: str, wanted: list[str], capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answers(words, capfd, monkeypatch)
    if words == "dns nowhere ":
        assert set(found) == {f"plain,{action}" for action in ACTIONS}
    else:
        assert found == wanted


def test_all_flags_with_one_dash(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    found = answers("dns train -", capfd, monkeypatch)
    assert {"plain,-solver", "plain,-gpu", "plain,-no-surgery", "plain,-help"} <= set(found)
    assert "plain,-phase" not in found  # hidden: it means nothing to train


def test_words_are_completed_and_not_enforced(capfd: Capture) -> None:
    # A copy of the flag has these words: the flag itself says what is wrong in its own way.
    run_well(["completion", "bash"], capfd)
    assert "-phase must be TRAIN or TEST" in complaint(["time", "--model", "m", "-phase=X"], capfd)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """One in which `dns` is this one, and a current folder with a definition."""
    program = tmp_path / "bin" / "dns"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m caffe_dns "$@"\n')
    program.chmod(0o755)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "solver.prototxt").touch()
    monkeypatch.chdir(folder)
    path = f"{program.parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(tmp_path)}


def test_bash(environment: dict[str, str]) -> None:
    script = """
        eval "$(dns completion bash)"
        complete -p dns
        COMP_WORDS=(dns train -solv); COMP_CWORD=2
        _dns_completion dns
        echo "${COMPREPLY[@]}"
        # Nothing but that they are files: bash completes what stands behind the `=` then.
        compopt() { echo "$@"; }
        COMP_WORDS=(dns train -solver = s); COMP_CWORD=4
        _dns_completion dns
        COMP_WORDS=(dns train -solver =); COMP_CWORD=3
        _dns_completion dns
    """
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "--norc", "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _dns_completion dns",
        "-solver",
        "-o default",
        "-o default",
    ]
    assert done.stderr == ""


def test_fish(environment: dict[str, str]) -> None:
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("no fish is installed")
    asked = {
        "dns train -solver so": "solver.prototxt",
        "dns train -solver=so": "-solver=solver.prototxt",
        "dns train -precision=b": "-precision=bf16",
        "dns trai": "train",
    }
    script = "dns completion fish | source\n"
    script += "\n".join(f"complete -C '{words}'" for words in asked)
    done = subprocess.run([fish, "-c", script], env=environment, capture_output=True, text=True)
    found = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert found == list(asked.values())
    assert done.stdout.endswith("train\tTrain, finetune or prune a model.\n")
    assert done.stderr == ""


def test_zsh(environment: dict[str, str]) -> None:
    """Typed at a terminal, as zsh completes nowhere else."""
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("no zsh is installed")
    leader, terminal = pty.openpty()
    process = subprocess.Popen(
        [zsh, "-f", "-i"],
        env={**environment, "TERM": "dumb"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    said = ""

    def typed(text: str, wanted: str) -> None:
        nonlocal said
        os.write(leader, text.encode())
        while wanted not in said:
            said += os.read(leader, 4096).decode(errors="replace")

    typed("PS1=; autoload -U compinit; compinit -u -D; echo loa''ded\n", "loaded")
    typed("eval \"$(dns completion zsh)\"; echo rea''dy\n", "ready")
    typed("dns train -solver=so\t", "dns train -solver=solver.prototxt ")
    typed("-precision=b\t", "-precision=bf16 ")
    process.kill()
    process.wait()
    os.close(leader)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(shell: str, capfd: Capture) -> None:
    text = run_well(["completion", shell], capfd).out
    assert f"_DNS_COMPLETE={shell}_complete" in text
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n"], input=text, text=True, check=True)


def test_unknown_shells(capfd: Capture) -> None:
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in complaint(["completion", "tcsh"], capfd)
