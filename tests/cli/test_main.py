"""How flags may be spelled, what help says, and what becomes of errors and unknown words."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from caffe_dns.cli.actions import parse_log
from caffe_dns.cli.main import ACTIONS, library_of, main, normalize
from tests.cli.harness import complaint, run, run_well
from tests.oracle import GOLDEN

Capture = pytest.CaptureFixture[str]


# Flags -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["train", "-solver", "s"], ["train", "--solver", "s"]),
        (["train", "-solver=s"], ["train", "--solver=s"]),
        (["train", "--solver=a=b"], ["train", "--solver=a=b"]),
        (["train", "--solver", "s"], ["train", "--solver", "s"]),
        (["test", "-iterations", "-5"], ["test", "-iterations", "-5"]),
        (["-solver=s", "train"], ["train", "--solver=s"]),
        (["--solver", "s", "train", "-gpu", "0"], ["train", "--solver", "s", "--gpu", "0"]),
        (["trian", "-solver", "s"], ["trian", "--solver", "s"]),
        (["-help"], ["--help"]),
        ([], []),
        (["convert_imageset", "-gray", "a"], ["convert_imageset", "--gray", "a"]),
        (["convert_imageset", "--gray=true"], ["convert_imageset", "--gray"]),
        (["convert_imageset", "-gray=1"], ["convert_imageset", "--gray"]),
        (["convert_imageset", "--gray=False"], ["convert_imageset", "--nogray"]),
        (["convert_imageset", "-gray=no"], ["convert_imageset", "--nogray"]),
        (["convert_imageset", "-nogray"], ["convert_imageset", "--nogray"]),
        (["convert_imageset", "-backend=true"], ["convert_imageset", "--backend=true"]),
        (["test", "--no-surgery=true"], ["test", "--no-surgery"]),
        (["test", "--no-surgery=false"], ["test"]),
    ],
)
def test_normalize(given: list[str], wanted: list[str]) -> None:
    expected = ["--iterations" if word == "-iterations" else word for word in wanted]
    assert normalize(given) == expected


def test_a_boolean_is_true_or_false(capfd: Capture) -> None:
    line = complaint(["convert_imageset", "--gray=perhaps", "a", "b", "c"], capfd)
    assert line == "dns: --gray: 'perhaps' is neither true nor false"


def test_a_package_that_is_missing() -> None:
    program = "import sys; sys.modules['torch'] = None; from caffe_dns.cli.main import main; main()"
    words = [sys.executable, "-c", program, "doctor"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    complaint = "dns: the Python module torch is not installed; 'pip check' lists what is missing"
    assert done.stderr.splitlines() == [complaint]


def test_a_level_has_32_bits(capfd: Capture) -> None:
    line = complaint(["test", "--level=2147483648"], capfd)
    assert "'--level': 2147483648 is not in the range -2147483648<=x<=2147483647" in line


# Help --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-help"], ["-h"]])
def test_help_lists_all_actions(arguments: list[str], capfd: Capture) -> None:
    text = run_well(arguments, capfd).out
    assert text.startswith("Usage: dns ")
    for action, line in ACTIONS.items():
        assert action in text
        assert line in text


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_has_help(action: str, capfd: Capture) -> None:
    text = run_well([action, "--help"], capfd).out
    assert text.startswith(f"Usage: dns {action} ")
    assert max(map(len, text.splitlines())) <= 90


def test_help_of_train_names_its_flags(capfd: Capture) -> None:
    text = run_well(["train", "--help"], capfd).out
    for flag in ("--solver", "--weights", "--snapshot", "--gpu", "--sigint_effect", "--stage"):
        assert flag in text


def test_version(capfd: Capture) -> None:
    assert run_well(["-version"], capfd).out.startswith("dns, version ")


# Words that are not known ------------------------------------------------------------------------


def test_unknown_action(capfd: Capture) -> None:
    result = run(["quux"], capfd)
    recorded = (GOLDEN / "logs" / "unknown_action.log").read_text().splitlines()
    theirs = [line.partition("] ")[2] for line in recorded]
    assert result.code == 1
    assert result.out == ""
    assert result.complaints == []
    assert result.messages[0] == theirs[0] == "Available caffe actions:"
    assert result.messages[1:-1] == [f"\t{action}" for action in sorted(ACTIONS)]
    assert set(theirs[1:-1]) <= set(result.messages)
    assert result.messages[-1] == theirs[-1].replace("trian", "quux")


def test_an_action_that_is_misspelt_is_told_in_one_line(capfd: Capture) -> None:
    result = run(["tets"], capfd)
    assert (result.code, result.out, result.complaints) == (1, "", [])
    assert result.messages == ["Unknown action: tets (did you mean 'test'?)"]


def test_a_file_without_its_flag(capfd: Capture) -> None:
    line = complaint(["summary", "net.prototxt"], capfd)
    assert "(net.prototxt); it belongs to a flag: --model, --weights (" in line
    assert "flag" not in complaint(["draw_net", "a", "b", "c"], capfd).partition("(c)")[2]


def test_help_of_a_command(capfd: Capture) -> None:
    assert run_well(["help", "convert_imageset"], capfd).out == (
        run_well(["convert_imageset", "--help"], capfd).out
    )
    assert run_well(["help"], capfd).out == run_well(["--help"], capfd).out


def test_unknown_flag(capfd: Capture) -> None:
    line = complaint(["train", "-slover", "x"], capfd)
    assert "--slover" in line
    assert "--solver" in line
    assert "'dns train --help'" in line


def test_flag_without_a_value(capfd: Capture) -> None:
    assert "--solver" in complaint(["train", "-solver"], capfd)


def test_flag_with_a_value_of_another_type(capfd: Capture) -> None:
    assert "'many'" in complaint(["test", "-iterations", "many"], capfd)


def test_flags_without_an_action(capfd: Capture) -> None:
    assert "--solver" in complaint(["-solver", "x"], capfd)


# Errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_out_of_memory(error: Exception, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: str) -> None:
        raise error

    monkeypatch.setattr(parse_log, "save_tables", fail)
    assert "batch_size" in complaint(["parse_log", "a", "b"], capfd)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("can't start new thread"), "dns: no more threads may be started here"),
        (ImportError("x.so: failed to map segment from shared object"), "file system allows no"),
        (OSError(errno.EMFILE, "Too many open files"), "dns: Too many open files"),
        (RuntimeError("CUDA error: unknown error\nCUDA kernel errors"), "suspending: CUDA error"),
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), "itself"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore"), "is damaged: CUDA"),
    ],
)
def test_what_the_system_refuses(
    error: Exception, said: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: str) -> None:
        raise error

    monkeypatch.setattr(parse_log, "save_tables", fail)
    assert said in complaint(["parse_log", "a", "b"], capfd)


def failing(module: str, reason: str = "raise OSError(28, 'No space left on device')") -> Any:
    """A function of this module that fails; by itself, as one does that writes to a full disk."""
    space: dict[str, Any] = {}
    text = f"def fail(*arguments):\n    {reason}"
    exec(compile(text, f"/usr/lib/python3/{module}", "exec"), space)
    return space["fail"]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (
            "raise OSError(28, 'No space left on device')",
            "a file of triton cannot be written: No space left on device",
        ),
        (
            "import json; json.loads('')",
            "Triton's folder of compiled kernels is damaged: remove /kept",
        ),
    ],
)
def test_a_cache_of_a_library(
    reason: str, said: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of a write names no file, and was taken for one of stdout."""
    fail = failing("site-packages/triton/runtime/cache.py", reason)
    monkeypatch.setattr(parse_log, "save_tables", fail)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/kept")
    assert complaint(["parse_log", "a", "b"], capfd) == f"dns: {said}"


@pytest.mark.parametrize("module", ["dist-packages/click/utils.py", "dns/caffe_dns/cli/card.py"])
def test_stdout_is_no_librarys(module: str) -> None:
    with pytest.raises(OSError, match="No space") as caught:
        failing(module)()
    assert library_of(caught.value) == ""


def test_the_current_folder_is_gone(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert complaint(["summary", "--model", "x"], capfd).startswith("dns: the current folder is")


def test_of_a_long_name_the_ends_are_shown(capfd: Capture) -> None:
    name = f"begin{'x' * 1_000_000}end"
    said = complaint(["summary", "--model", f"{name} of a net"], capfd)
    assert (
        said
        == f"dns: begin{'x' * 145}...{'x' * 147}end of a net: cannot be read: File name too long"
    )


def test_faults_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: str) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(parse_log, "save_tables", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        main(["parse_log", "a", "b"])


def test_a_process_of_its_own() -> None:
    def dns(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "caffe_dns", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert dns("--version").returncode == 0
    result = dns("parse_log", "gone.log", ".")
    assert result.returncode == 1
    assert result.stderr == "dns: gone.log: cannot be read: No such file or directory\n"
    assert result.stdout == ""


def test_training_starts_without_what_it_has_no_use_for() -> None:
    """What takes long to import, and what garbage is not looked for in."""
    program = """
import gc, sys
from caffe_dns.cli.main import main
try:
    main(["train"])
except SystemExit:
    pass
assert "torch" in sys.modules
print([name for name in ("cv2", "h5py", "rich", "matplotlib", "numba") if name in sys.modules])
print(gc.isenabled(), len(gc.get_objects()) < gc.get_freeze_count())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.splitlines() == ["[]", "True True"]


@pytest.mark.parametrize("own_code", [False, True])
def test_a_short_run_ends_without_python_but_for_code_of_users(
    own_code: bool, tmp_path: Path
) -> None:
    """Which may have files open, that Python writes to at its end."""
    (tmp_path / "mine.py").write_text("file = open('kept', 'w')\nfile.write('all of it')\n")
    (tmp_path / "net").write_text(
        "layer { name: 'a' type: 'Input' top: 'a' input_param { shape { dim: 7 } } }"
    )
    program = """
import atexit, sys
atexit.register(print, "the end of Python")
from caffe_dns.__main__ import main
main()
"""
    plugin = ["--import", "mine"] if own_code else []
    command = [sys.executable, "-c", program, "summary", "--model", "net", *plugin]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert "Input" in result.stdout
    assert (lines[-1] == "the end of Python") == own_code
    assert not own_code or (tmp_path / "kept").read_text() == "all of it"
