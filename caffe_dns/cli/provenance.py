"""The head of a training log: what would have to be the same for the run to be the same."""

from __future__ import annotations

import platform
import shlex
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from caffe_dns import __version__, log

_PACKAGE = Path(__file__).resolve().parents[1]
#: Seconds after which git is not waited for any longer.
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
    log.info(
        f"Host: {socket.gethostname()}, {platform.platform()}, {torch.get_num_threads()} threads"
    )
    folder = Path.cwd()
    log.info(f"Command line: {shlex.join(['dns', *arguments])}")
    log.info(f"Folder: {folder}{_described(folder)}")


def log_seed(seed: int, *, given: bool) -> None:
    """Log the seed, and whether it was drawn."""
    origin = "from random_seed" if given else f"drawn; `random_seed: {seed}` draws the same again"
    log.info(f"Random seed: {seed} ({origin})")


def _described(folder: Path, *, only_root: bool = False) -> str:
    """The commit of the repository that a folder lies in, in brackets; nothing if it lies in none.

    With `only_root` it counts only where the folder is the repository's own.
    """
    if only_root and not (folder / ".git").exists():
        return ""
    command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--dirty=|"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
        if done.returncode == 0 and done.stdout.strip():
            commit, changed, _ = done.stdout.strip().partition("|")
            return f" (git {commit}{' with changes' if changed else ''})"
    return ""
