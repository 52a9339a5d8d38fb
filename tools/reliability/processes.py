"""What the programs of this folder start `dns` with, or children of their own."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Callable
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


def in_child(act: Callable[[], tuple[int, str]]) -> tuple[int, str, resource.struct_rusage]:
    """Call a function in a child of this process: its exit code and words, and what it has used.

    The code is 1 where the function raises, and minus the signal where one ends the child.
    """
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code, said = act()
            os.write(sender, said.encode("utf-8", "replace")[-3000:])
        finally:
            os._exit(code)
    os.close(sender)
    _, status, usage = os.wait4(child, 0)
    with open(receiver, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(status), said, usage
