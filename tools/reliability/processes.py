"""What the programs of this folder start `dns` with."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def program() -> list[str]:
    """The command `dns` as it is installed beside this interpreter; else the module."""
    installed = Path(sys.executable).with_name("dns")
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "caffe_dns"]


def environment(*folders: Path) -> dict[str, str]:
    """This process's, in which modules of this tree and of these folders are found besides.

    There is one thread, unless this process was told otherwise.
    """
    path = [str(ROOT), *map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(path)}


def meeting_places(ranks: int) -> list[dict[str, str]]:
    """torchrun's variables for each rank of this machine; none where there is one alone."""
    if ranks == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = address | {"WORLD_SIZE": str(ranks), "GLOO_SOCKET_IFNAME": "lo"}
    return [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
