"""Files themselves, whatever is in them: written whole or not at all, read without being believed.

Here belongs what every file needs, whoever reads or writes it: names, pipes and devices, temporary
files, HDF5 as a container, numbers that are finite. What the content means is known elsewhere. Read
`writing`, then `reading`.
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
