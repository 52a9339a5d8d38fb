"""Signals from the first moment on, each in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BEGIN = "from caffe_dns import interrupt; interrupt.begin(); import os, signal\n"
SIGINT, SIGTERM, SIGHUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def run(
    program: str,
    ignored: Sequence[int] = (),
    blocked: Sequence[int] = (),
    closed: Sequence[int] = (),
    before: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a Python program that begins with these signals, whatever this process does with them."""

    def prepare() -> None:
        for known in (SIGINT, SIGTERM, SIGHUP):
            signal.signal(known, signal.SIG_IGN if known in ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if blocked:  # they wait for the program, before Python has begun
            for number in blocked:
                os.kill(os.getpid(), number)
        for descriptor in closed:
            os.close(descriptor)

    return subprocess.run(
        [sys.executable, "-c", before + BEGIN + program],
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        check=False,
    )


def kill(number: int) -> str:
    return f"os.kill(os.getpid(), {int(number)})\n"


@pytest.mark.parametrize("number", [SIGINT, SIGTERM, SIGHUP])
def test_a_signal_before_the_flags_are_known_ends_the_program_then(number: int) -> None:
    done = run(kill(number) + "print('flags', flush=True)\ninterrupt.settle()\nprint('work')")
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "flags\n", "")


@pytest.mark.parametrize("number", [SIGINT, SIGTERM, SIGHUP])
def test_a_signal_after_them_ends_the_program_at_once(number: int) -> None:
    done = run("interrupt.settle()\n" + kill(number) + "while True: pass")
    assert (done.returncode, done.stderr) == (128 + number, "")


def test_effects_of_a_training_hold_before_it_begins() -> None:
    done = run(
        kill(SIGINT)
        + "interrupt.settle('snapshot', 'none')\n"
        + kill(SIGINT)
        + kill(SIGHUP)
        + "print(interrupt.noted)\n"
        + kill(SIGTERM)
        + "while True: pass"
    )
    assert done.returncode == 128 + SIGTERM
    done = run(
        kill(SIGINT)
        + "interrupt.settle('snapshot', 'none')\n"
        + kill(SIGINT)
        + kill(SIGHUP)
        + "print(interrupt.noted)"
    )
    assert (done.returncode, done.stdout) == (0, f"[{int(SIGINT)}, {int(SIGINT)}]\n")


def test_what_was_ignored_is_heeded_by_trainings_alone() -> None:
    ignored = [SIGINT, SIGTERM, SIGHUP]
    both = kill(SIGINT) + kill(SIGHUP) + kill(SIGTERM)
    done = run(both + "interrupt.settle()\n" + both + "print('goes on')", ignored)
    assert (done.returncode, done.stdout) == (0, "goes on\n")
    done = run(both + "interrupt.settle('snapshot', 'snapshot')\nprint(interrupt.noted)", ignored)
    assert (done.returncode, done.stdout) == (0, f"[{int(SIGINT)}, {int(SIGHUP)}]\n")
    done = run(
        "interrupt.settle('stop', 'snapshot')\n" + kill(SIGINT) + "while True: pass", ignored
    )
    assert done.returncode == 130


def test_signals_that_were_blocked_wait_for_the_program() -> None:
    """None is lost to Python's own start, then."""
    done = run("print(interrupt.noted)", blocked=[SIGINT, SIGHUP])
    assert sorted(eval(done.stdout)) == [SIGHUP, SIGINT]
    assert done.stderr == ""


def test_nothing_changes_what_a_finished_program_ends_with() -> None:
    done = run("interrupt.settle()\ninterrupt.finish()\n" + kill(SIGINT) + kill(SIGHUP))
    assert (done.returncode, done.stderr) == (0, "")


def test_other_programs_keep_their_handlers() -> None:
    program = (
        "import signal; before = signal.getsignal(signal.SIGINT)\n"
        "from caffe_dns import interrupt; import caffe_dns.cli.main\n"
        "interrupt.settle(); interrupt.finish()\n"
        "assert signal.getsignal(signal.SIGINT) is before"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_temporary_files_go_with_the_program(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\nfrom caffe_dns.files import temporary_beside\n"
        f"path = Path({str(tmp_path)!r}) / 'model'\n"
        "temporary_beside(path).write_bytes(b'half')\n"
        "folder = temporary_beside(path); folder.mkdir(); (folder / 'data.mdb').touch()\n"
        "(path.parent / '.model.tmp').touch()\n"
        "interrupt.settle()\n"
    )
    assert run(program + kill(SIGINT) + "while True: pass").returncode == 130
    assert os.listdir(tmp_path) == [".model.tmp"]


def test_a_program_is_left_without_pythons_own_end() -> None:
    program = (
        "import atexit; atexit.register(print, 'end')\n"
        "interrupt.at_end.append(lambda: print('cleaned'))\n"
    )
    done = run(program + "interrupt.leave(3)")
    assert (done.returncode, done.stdout, done.stderr) == (3, "cleaned\n", "")
    done = run("interrupt._ignored = None\n" + program + "interrupt.leave(3)")
    assert (done.returncode, done.stdout) == (0, "end\n")


def test_closed_descriptors_are_not_given_to_files() -> None:
    """A warning of a library would go into the next file that is opened."""
    program = (
        "import sys; file = open(sys.executable, 'rb')\n"
        "sys.stderr.write('lost'); sys.stderr.flush()\n"
        "os.write(1, str(file.fileno()).encode())"
    )
    done = run(program, closed=[0, 2])
    assert done.returncode == 0
    assert int(done.stdout) > 2


def test_descriptors_that_are_open_need_no_null_device() -> None:
    """It is missing in some chroots, and in some containers nobody may read it."""
    done = run("print('begun')", before="import os; os.devnull = '/none'\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "begun\n", "")


def test_names_of_files_are_in_utf_8_in_every_locale(tmp_path: Path) -> None:
    """Those in definitions are bytes, which Python would refuse where it speaks ASCII."""
    program = f"import caffe_dns.__main__; open({'имя'!a}, 'w'); print(ascii(sys.argv[1]))"
    started = [sys.executable, "-c", "import sys; " + program, "имя"]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(started, cwd=tmp_path, env=plain, capture_output=True, check=True)
    assert done.stdout == ascii("имя").encode() + b"\n"
    assert os.listdir(os.fsencode(tmp_path)) == ["имя".encode()]


def test_nothing_is_imported_before_signals_are_heeded() -> None:
    program = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
before = set(sys.modules)
import caffe_dns.__main__
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True)
    ours = ["caffe_dns", "caffe_dns.__main__", "caffe_dns.interrupt"]
    assert sorted(eval(done.stdout)) == ["__future__", *ours], done.stderr


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_command_keeps_signals_waiting_while_python_starts(shell: str, tmp_path: Path) -> None:
    """Also by a link to it from elsewhere, as pipx makes them."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    shutil.copy(ROOT / "bin" / "dns", folder)
    program = folder / "dns-unguarded"
    program.write_text(
        f"#!{sys.executable}\nimport signal, sys\n"
        "print(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), sys.argv[1:])"
    )
    program.chmod(0o755)
    (tmp_path / "dns").symlink_to(folder / "dns")
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    done = subprocess.run([shell, tmp_path / "dns", "a  b", ""], capture_output=True, text=True)
    assert done.stdout == f"{sorted(map(int, (SIGHUP, SIGINT, SIGTERM)))} ['a  b', '']\n"
