"""Writes files so that they appear complete or not at all.

Every model, state, definition and table that dns writes goes through here. Databases, which are
folders, are put together elsewhere and also get their names only when complete.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from caffe_dns import interrupt, log
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError

#: Pieces of at least this size are written separately.
_ONE_WRITE = 1 << 20
#: Identifies this process: in containers, process numbers repeat.
_OURS = secrets.token_hex(2)
#: The folders in which this process has made temporary files.
_folders: set[Path] = set()


def write_atomically(path: str | Path, *pieces: bytes | memoryview) -> None:
    """Write the pieces, in order, to the file `path`, replacing an existing one.

    Readers of `path` see the old file or the new one, also after a power failure. On failure
    nothing is left behind. Raises CaffeError when the folder is missing or not writable.
    """
    file = NewFile(path)
    try:
        start = 0
        for piece in _together(pieces):
            file.write(piece, start)
            start += len(piece)
        file.close()
    finally:
        file.abort()


def _together(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The pieces, with small ones joined, so that there are few writes."""
    waiting = bytearray()
    for piece in pieces:
        if len(waiting) + len(piece) <= _ONE_WRITE:
            waiting += piece
            continue
        yield bytes(waiting)
        waiting.clear()
        yield piece
    yield bytes(waiting)


class NewFile:
    """A file that has a hidden name beside its own, `path`, until it is closed.

    Then it replaces an existing file, and keeps that file's permissions. A link is replaced, with a
    warning, and its target is left as it is. The owner of a NewFile closes it or gives it up. Every
    failure is a CaffeError that names `path`.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(on_disk(str(path)))
        self._check_place()
        self._temporary = temporary_beside(self._path)
        with _errors(self._path):
            # Not tempfile: its files are private to the user, these get the usual permissions.
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._temporary, flags, 0o666)
        try:
            self._keep_permissions()
        except CaffeError:
            self.abort()
            raise

    def write(self, data: bytes | memoryview, start: int) -> None:
        """Write all of `data` at offset `start`."""
        left = memoryview(data).cast("B")
        with _errors(self._path):
            while left:
                done = os.pwrite(self._descriptor, left, start)
                left, start = left[done:], start + done

    def read(self, size: int, start: int) -> bytes:
        """Read `size` bytes at offset `start`, fewer at the end."""
        with _errors(self._path):
            return os.pread(self._descriptor, size, start)

    def truncate(self, size: int) -> None:
        """Set the length of the file."""
        with _errors(self._path):
            os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        """Sync the file and give it its name."""
        with _errors(self._path):
            sync(self._descriptor)
            self._close_descriptor()
            if self._path.is_symlink():
                log.warning(
                    f"{self._path} is a link to {os.readlink(self._path)}: the file replaces "
                    "the link, and its target is left as it is"
                )
            os.replace(self._temporary, self._path)
            sync_folder(self._path.parent)

    def abort(self) -> None:
        """Delete the file, unless it has its name."""
        with suppress(OSError):
            self._close_descriptor()
        with suppress(OSError):
            self._temporary.unlink()

    def _check_place(self) -> None:
        path = str(self._path)
        if os.path.isdir(path):
            raise CaffeError("cannot be written: it is a folder", file=path)
        # The superuser could otherwise replace /dev/null by the file.
        in_dev = self._path.parent.absolute() == Path("/dev")
        if in_dev or (os.path.exists(path) and not os.path.isfile(path)):
            raise CaffeError("cannot be written: it is a device or a pipe, not a file", file=path)
        if not os.path.isdir(self._path.parent):
            folder = self._path.parent
            raise CaffeError(f"cannot be written: there is no folder {folder}", file=path)

    def _keep_permissions(self) -> None:
        with _errors(self._path):
            if not self._path.exists():
                return
            mode = self._path.stat().st_mode & 0o777
            # File systems without modes may refuse to set one.
            if os.fstat(self._descriptor).st_mode & 0o777 != mode:
                os.fchmod(self._descriptor, mode)

    def _close_descriptor(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """A context in which an OSError becomes a CaffeError about this file."""
    try:
        yield
    except OSError as error:
        raise CaffeError(f"cannot be written: {error.strerror}", file=str(path)) from None


def temporary_beside(path: Path) -> Path:
    """A unique temporary name in the folder of `path`.

    Raises CaffeError if no file can have such a name.

    The name contains machine and process. Removes what dead processes have left for the same
    `path`.
    """
    if "\0" in str(path):
        raise CaffeError("cannot be written: the name has a NUL byte in it", file=str(path))
    if not path.name:
        raise CaffeError("cannot be written: the name is empty, or that of a folder")
    remove_leftovers(path)
    _folders.add(path.parent.absolute())
    word = _OURS + secrets.token_hex(2)
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.{word}.tmp")


@contextmanager
def claimed(path: Path) -> Iterator[list[int]]:
    """Keep an empty temporary file for `path` in this context; gives the other processes with one.

    Only those of this machine are known. No file is kept where none can be written.
    """
    mark = temporary_beside(path)
    with suppress(OSError):
        mark.touch()
    try:
        yield sorted(_at_work_on(path) - {os.getpid()})
    finally:
        with suppress(OSError):
            mark.unlink()


def _at_work_on(path: Path) -> set[int]:
    """The live processes that have a temporary file for `path`; removes those of dead ones."""
    beginning = f".{path.name}"
    found: set[int] = set()
    with suppress(OSError):
        for name in os.listdir(path.parent):
            if name.startswith(beginning) and (match := _ending().match(name, len(beginning))):
                found.add(int(match[1]))
    return found


def remove_leftovers(path: Path, *, any_ending: bool = False) -> None:
    """Remove temporary files and folders that dead processes of this machine have left for `path`.

    With `any_ending`, also those for files whose names begin like `path`.
    """
    beginning = f".{path.name}"

    def is_left(entry: os.DirEntry[str]) -> bool:
        if not entry.name.startswith(beginning):
            return False
        match = _ending().search(entry.name, len(beginning))
        if match is None or not (any_ending or match.start() == len(beginning)):
            return False
        return not _is_at_work(int(match[1]), match[2])

    _remove(path.parent, is_left)


def _remove(folder: Path, unwanted: Callable[[os.DirEntry[str]], bool]) -> None:
    """Remove files, folders and links; a folder that cannot be listed keeps what it has."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if not unwanted(entry):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(entry.path)


def _remove_ours() -> None:
    """Remove all temporary files and folders of this process, which is about to end."""

    def is_ours(entry: os.DirEntry[str]) -> bool:
        match = _ending().search(entry.name)
        return match is not None and entry.name[0] == "." and int(match[1]) == os.getpid()

    for folder in _folders:
        _remove(folder, is_ours)


interrupt.at_end.append(_remove_ours)


@cache
def _ending() -> re.Pattern[str]:
    """The ending that this machine adds to the names of files for temporary ones.

    One pattern for all names, because Python caches patterns and a run writes many snapshots.
    """
    return re.compile(rf"\.{_machine()}\.(\d{{1,9}})\.([0-9a-f]{{4}})[0-9a-f]{{4}}\.tmp\Z")


@cache
def _machine() -> str:
    """Identifies this machine, and the container that process numbers belong to."""
    try:
        container = os.readlink("/proc/self/ns/pid")
    except OSError:
        container = ""
    return hashlib.sha256(f"{platform.node()} {container}".encode()).hexdigest()[:8]


def _is_at_work(process: int, word: str) -> bool:
    """Whether the process that made a temporary file is still running."""
    if process == os.getpid():
        return word == _OURS
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def check_target(path: str | Path, inputs: Iterable[str] = ()) -> None:
    """Raise CaffeError if no file of this name can be written, for checks before long work.

    Also if it would replace one of the files that it is made from.
    """
    for given in inputs:
        if os.path.isfile(path) and os.path.exists(given) and os.path.samefile(path, given):
            raise CaffeError(
                "is read here, and would be lost; give the output another name", file=str(path)
            )
    NewFile(path).abort()
    place = Path(on_disk(str(path)))
    with _errors(place):
        try_place(place)


def try_place(path: Path) -> None:
    """Raise OSError if no hidden file can be made beside `path`, or it cannot be renamed."""
    names = temporary_beside(path), temporary_beside(path)
    try:
        names[0].touch()
        names[0].replace(names[1])
    finally:
        for name in names:
            with suppress(OSError):
                name.unlink()


def sync(descriptor: int) -> None:
    """Sync a file to disk, if its file system can. Raises OSError."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def sync_folder(folder: Path) -> None:
    """Sync a rename to disk; ignores folders that cannot be read or synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
