"""Writing a file so that it appears whole or not at all.

Every model, state, definition and table that dns writes goes through here. Databases are not
written here; they bring their own transactions.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from caffe_dns.errors import CaffeError


def write_atomically(path: str | Path, data: bytes) -> None:
    """Put `data` into the file `path`, replacing what was there.

    Whoever reads `path` meanwhile sees the old file or the new one, also after a power failure. On
    failure nothing is left behind. Raises CaffeError when the folder is missing or not writable.
    """
    path = Path(path)
    _check_target(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        _write_new(temporary, data)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise CaffeError(f"cannot be written: {error.strerror}", file=str(path)) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _check_target(path: Path) -> None:
    if path.is_dir():
        raise CaffeError("cannot be written: it is a folder", file=str(path))
    if not path.parent.is_dir():
        raise CaffeError(f"cannot be written: there is no folder {path.parent}", file=str(path))


def _write_new(path: Path, data: bytes) -> None:
    # Not tempfile: its files are private to the user, these get the usual permissions.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename last; folders that cannot be read or synced are left alone."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
