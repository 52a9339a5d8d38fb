"""The head of a training log: everything that must be the same to reproduce the run."""

from __future__ import annotations

import os
import platform
import re
import shlex
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from caffe_dns import __version__, log
from caffe_dns.cli import threads

_PACKAGE = Path(__file__).resolve().parents[1]
#: Seconds to wait for git.
_PATIENCE = 5


def log_head(arguments: Sequence[str]) -> None:
    """Log the versions, the host and the command line, with the states of the repositories."""
    parts = [
        f"dns {__version__}{_described(_PACKAGE.parent, only_root=True)}",
        f"Python {platform.python_version()}",
        f"PyTorch {torch.__version__}",
        f"numpy {np.__version__}",
    ]
    if torch.version.cuda:
        parts.append(f"CUDA {torch.version.cuda}")
    log.info(f"Versions: {', '.join(parts)}")
    log.info(f"Host: {socket.gethostname()}, {platform.platform()}, {threads.described()}")
    folder = Path.cwd()
    log.info(f"Command line: {command_line(*arguments)}")
    log.info(f"Folder: {folder}{_described(folder)}")


def command_line(*arguments: str) -> str:
    """`dns` with these arguments, quoted for a shell."""
    return shlex.join(["dns", *arguments])


def log_seed(seed: int, *, given: bool) -> None:
    """Log the seed, and whether it was drawn."""
    origin = "from random_seed" if given else f"drawn; `random_seed: {seed}` draws the same again"
    log.info(f"Random seed: {seed} ({origin})")


def _described(folder: Path, *, only_root: bool = False) -> str:
    """The commit of the repository that contains a folder, in brackets; empty if there is none.

    With `only_root`, only if the folder is the repository's root.
    """
    if only_root and not (folder / ".git").exists():
        return ""
    with suppress(OSError, subprocess.SubprocessError):
        # To find changes, git would run the filters that a repository configures.
        filters = _ask_git(folder, "config", "--show-scope", "--get-regexp", r"^filter\.")
        trusted = not re.search(r"^(local|worktree)\s", filters, re.MULTILINE)
        changes = ["--dirty=|"] if trusted else []
        told = _ask_git(folder, "describe", "--always", "--exclude=*", *changes).strip()
        commit, changed, _ = told.partition("|")
        if commit:
            return f" (git {commit}{' with changes' if changed else ''})"
    return ""


def _ask_git(folder: Path, *arguments: str) -> str:
    """git's output about the repository that contains a folder; empty if git fails.

    A folder may come from anybody, so no program that its repository configures is run.
    """
    safe = ["-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}"]
    done = subprocess.run(
        ["git", "-C", str(folder), *safe, *arguments],
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )
    return done.stdout if done.returncode == 0 else ""
