"""Files, whatever their content: written completely or not at all, and read without trust.

Here belongs what every file needs, whoever reads or writes it: names, pipes and devices, temporary
files, HDF5 as a container, checks for finite numbers. What the content means is known elsewhere.
Read `writing`, then `reading`.
"""

from caffe_dns.files.writing import (
    NewFile,
    check_target,
    claimed,
    remove_leftovers,
    sync,
    sync_folder,
    temporary_beside,
    try_place,
    write_atomically,
)

__all__ = [
    "NewFile",
    "check_target",
    "claimed",
    "remove_leftovers",
    "sync",
    "sync_folder",
    "temporary_beside",
    "try_place",
    "write_atomically",
]
