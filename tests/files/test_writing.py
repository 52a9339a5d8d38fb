import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from caffe_dns.data.db import create_database
from caffe_dns.errors import CaffeError
from caffe_dns.files import (
    check_target,
    claimed,
    remove_leftovers,
    temporary_beside,
    write_atomically,
    writing,
)


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_atomically(path, b"first")
    write_atomically(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_a_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "private"
    path.touch()
    path.chmod(mode)
    write_atomically(path, b"new")
    assert path.stat().st_mode & 0o777 == mode


def test_permissions_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    (tmp_path / "model").write_bytes(b"old")
    monkeypatch.setattr(os, "fchmod", refuse)
    write_atomically(tmp_path / "model", b"newer")  # the mode that it has anyway
    (tmp_path / "model").chmod(0o600)
    with pytest.raises(CaffeError, match="model: cannot be written: Operation not permitted"):
        write_atomically(tmp_path / "model", b"new")
    assert os.listdir(tmp_path) == ["model"]
    assert (tmp_path / "model").read_bytes() == b"newer"


def test_a_link_is_replaced_and_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "elsewhere" / "precious"
    precious.parent.mkdir()
    precious.write_bytes(b"precious")
    precious.chmod(0o600)
    link = tmp_path / "model"
    link.symlink_to(precious)
    write_atomically(link, b"new")
    assert (precious.read_bytes(), link.read_bytes()) == (b"precious", b"new")
    assert not link.is_symlink()
    assert link.stat().st_mode & 0o777 == 0o600
    assert f"{link} is a link to {precious}: the file replaces" in capsys.readouterr().err
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    write_atomically(dangling, b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "elsewhere", "model"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "model.bin"
    with pytest.raises(CaffeError) as caught:
        write_atomically(path, b"")
    assert str(caught.value) == f"{path}: cannot be written: there is no folder {path.parent}"


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match="it is a folder"):
        write_atomically(tmp_path, b"")


@pytest.mark.parametrize("name", ["pipe", "link"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(CaffeError, match=f"{name}: cannot be written: it is a device or a pipe"):
        write_atomically(tmp_path / name, b"")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@pytest.mark.parametrize("name", ["null", "stdout"])
def test_devices_are_refused(name: str) -> None:
    """Of the superuser, too, who may replace them: also where stdout is a file."""
    with pytest.raises(CaffeError, match=f"/dev/{name}: cannot be written: it is a device"):
        check_target(f"/dev/{name}")


@pytest.mark.parametrize("failing", ["open", "pwrite", "fsync", "close", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises((CaffeError, KeyboardInterrupt)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_a_file_system_that_cannot_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomically(tmp_path / "new", b"whole")
    assert (tmp_path / "new").read_bytes() == b"whole"


@pytest.mark.parametrize("name", ["", "/"])
def test_a_name_for_something_new_is_not_empty(name: str) -> None:
    with pytest.raises(CaffeError, match="the name is empty"):
        temporary_beside(Path(name))


def temporary(path: Path) -> str:
    """The name of a temporary file for `path`, made by this process."""
    return temporary_beside(path).name


def test_what_dead_processes_left_goes(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    name = temporary(tmp_path / "snap_iter_1.caffemodel")
    ours = f".{os.getpid()}."
    left = name.replace(ours, f".{dead.pid}.")
    others = [
        name.replace(ours, f".{os.getppid()}."),  # alive
        left.replace("caffemodel", "solverstate"),  # another file's
        left.replace(".tmp", ".tmp2"),
        re.sub(r"\.[0-9a-f]{8}\.(\d+)\.", r".00000000.\1.", left),  # another machine's
        "." + left,
    ]
    for file in (left, *others):
        (tmp_path / file).write_bytes(b"half")
    write_atomically(tmp_path / "snap_iter_1.caffemodel", b"whole")
    assert set(os.listdir(tmp_path)) == {*others, "snap_iter_1.caffemodel"}
    remove_leftovers(tmp_path / "snap_iter_", any_ending=True)
    assert others[1] not in os.listdir(tmp_path)
    assert len(os.listdir(tmp_path)) == len(others)


def test_nothing_is_kept_of_the_names_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python keeps patterns that were compiled: 4 KB for each snapshot of a long run."""
    write_atomically(tmp_path / "first", b"")
    monkeypatch.setattr(re, "compile", None)
    write_atomically(tmp_path / "second", b"")
    remove_leftovers(tmp_path / "third", any_ending=True)


def test_folders_of_dead_processes_go_and_links_are_not_followed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_bytes(b"")
    path = tmp_path / "folder" / "db"
    path.parent.mkdir()
    for kind in ("folder", "link"):
        left = path.with_name(temporary(path).replace(f".{os.getpid()}.", f".{dead.pid}."))
        if kind == "folder":
            left.mkdir()
            (left / "data.mdb").write_bytes(b"half")
        else:
            left.symlink_to(precious, target_is_directory=True)
        remove_leftovers(path)
        assert not list(path.parent.iterdir())
    assert (precious / "file").exists()


def test_an_earlier_process_of_our_number_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    left = tmp_path / temporary(path)
    left.write_bytes(b"half")
    os.utime(left, (0, 0))  # by a server whose clock is wrong
    remove_leftovers(path)
    assert left.exists()
    monkeypatch.setattr(writing, "_OURS", "next")
    remove_leftovers(path)
    assert not left.exists()


def test_who_else_writes_a_file_is_known(tmp_path: Path) -> None:
    path = tmp_path / "snap"
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    with claimed(path) as others:
        assert not others
        (name,) = os.listdir(tmp_path)
        for process in (dead.pid, os.getppid()):
            (tmp_path / name.replace(f".{os.getpid()}.", f".{process}.")).touch()
        with claimed(path) as others:
            assert others == [os.getppid()]
        with claimed(tmp_path / "snap_2") as others:
            assert not others
    assert os.listdir(tmp_path) == [name.replace(f".{os.getpid()}.", f".{os.getppid()}.")]
    with claimed(tmp_path / "none" / "snap") as others:
        assert not others


def test_what_cannot_be_written_is_found_before_long_work(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(b"old")
    check_target(kept)
    check_target(tmp_path / "new")
    with pytest.raises(CaffeError, match="cannot be written: File name too long"):
        check_target(tmp_path / ("a" * 240))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_where_nothing_can_be_renamed_is_found_before_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(CaffeError, match="model: cannot be written: Operation not permitted"):
        check_target(tmp_path / "model")
    for backend in ("lmdb", "leveldb"):
        with pytest.raises(CaffeError, match="db: cannot be made: Operation not permitted"):
            create_database(str(tmp_path / "db"), backend)
    assert not os.listdir(tmp_path)


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(b"old")
    (tmp_path / "link").symlink_to("given")
    check_target(tmp_path / "new", [str(tmp_path / "given"), "", "gone"])
    for name in ("given", "link"):
        with pytest.raises(CaffeError, match=f"/{name}: is read here, and would be lost; give"):
            check_target(tmp_path / name, ["gone", str(tmp_path / "given")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_where_nobody_may_write_is_found_before_long_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(CaffeError, match="cannot be written: Permission denied"):
        check_target(tmp_path / "new")
