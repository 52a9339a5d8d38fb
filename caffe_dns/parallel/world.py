"""What torchrun's environment variables tell a process about its ranks."""

from __future__ import annotations

import os
from dataclasses import dataclass

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.files.reading import is_count

#: Is "True" if the process that starts the ranks keeps the store, as torchrun does.
STORE_IS_KEPT = "TORCHELASTIC_USE_AGENT_STORE"
#: Variables with the number of tasks, and the index of this one, of srun and mpirun.
_TASKS = {
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
}


@dataclass(frozen=True)
class World:
    """This process among those that train together; `local` numbers are those on this host.

    They meet at a store at `address`:`port`, kept by the program that started them if
    `store_is_kept`, otherwise by rank 0.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    store_is_kept: bool


def find_world() -> World | None:
    """The world in torchrun's environment variables; None for a process that trains alone.

    Raises CaffeError for missing or invalid variables.
    """
    if not os.environ.get("RANK") or not os.environ.get("WORLD_SIZE"):
        _warn_of_tasks()
        return None
    size = _number("WORLD_SIZE")
    if size == 1:
        return None
    rank, local_rank = _number("RANK"), _number("LOCAL_RANK")
    local_size = _number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else size
    if not (rank < size and local_rank < local_size <= size):
        raise CaffeError(
            f"RANK {rank} of WORLD_SIZE {size}, LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE "
            f"{local_size}: ranks count from 0 and lie below the number of processes"
        )
    return World(
        rank,
        size,
        local_rank,
        local_size,
        _text("MASTER_ADDR"),
        _number("MASTER_PORT"),
        store_is_kept=os.environ.get(STORE_IS_KEPT) == "True",
    )


def _warn_of_tasks() -> None:
    for size, rank in _TASKS.items():
        tasks = os.environ.get(size, "")
        if is_count(tasks) and int(tasks) > 1:
            log.warning(
                f"This is task {os.environ.get(rank)} of {tasks} ({rank}, {size}), and trains by "
                "itself: RANK, WORLD_SIZE and the like would have them train together"
            )


def _text(variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise CaffeError(
            f"the environment variable {variable} is missing beside RANK and WORLD_SIZE; "
            "torchrun gives all of them"
        )
    return value


def _number(variable: str) -> int:
    value = _text(variable)
    if not is_count(value):
        raise CaffeError(f"the environment variable {variable} is '{value}', not a number")
    return int(value)
