"""What a command's flags are is said without what the command needs to run."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from caffe_dns import cli
from caffe_dns.cli.commands.train import SECTIONS
from caffe_dns.cli.main import ACTIONS
from caffe_dns.export import export_formats
from caffe_dns.solver.divergence import ON_NAN

SPLIT = sorted(
    path.stem
    for path in (Path(cli.__file__).parent / "actions").glob("*.py")
    if path.stem != "__init__"
)


def test_help_loads_nothing_that_takes_long() -> None:
    program = """
import sys
from contextlib import suppress
from caffe_dns.cli.main import ACTIONS, main
for action in ACTIONS:
    with suppress(SystemExit):
        main([action, "--help"])
slow = ("torch", "numpy", "h5py", "cv2", "rich", "google.protobuf", "lmdb", "matplotlib")
print("\\nslow:", [name for name in slow if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "slow: []", done.stderr


@pytest.mark.parametrize("action", SPLIT)
def test_an_action_takes_the_flags_that_are_declared(action: str) -> None:
    command = import_module(f"caffe_dns.cli.commands.{action}").command
    run = inspect.unwrap(import_module(f"caffe_dns.cli.actions.{action}").run)
    parameters = inspect.signature(run).parameters.values()
    taken = {p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD} - {"ranks"}
    # `runs` takes the number of threads.
    declared = {param for param in command.params if param.expose_value and param.name != "threads"}
    if "as_json" in {param.name for param in declared}:  # `with_output` makes one of two
        taken = taken - {"output"} | {"quiet", "as_json"}
    if "page" in taken:  # `with_report` makes it of one
        taken = taken - {"page"} | {"report"}
    shown = {param.name for param in declared if not getattr(param, "hidden", False)}
    assert shown == taken & {param.name for param in declared} == taken
    if len(taken) < len(declared):
        assert any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def test_each_flag_stands_in_one_section() -> None:
    command = import_module("caffe_dns.cli.commands.train").command
    shown = [param.opts[0][2:] for param in command.params if not getattr(param, "hidden", False)]
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted([*shown, "help"])


def test_what_is_written_out_in_declarations() -> None:
    options = {
        (action, param.name): param
        for action in ("train", "export")
        for param in import_module(f"caffe_dns.cli.commands.{action}").command.params
    }
    on_nan = options["train", "on_nan"].type
    assert isinstance(on_nan, click.Choice) and tuple(on_nan.choices) == ON_NAN
    said = options["export", "format_name"].help or ""
    assert all(name in said for name in export_formats)


def test_every_command_is_declared() -> None:
    assert set(ACTIONS) - set(SPLIT) == {"completion"}  # which needs nothing
    assert set(SPLIT) <= set(ACTIONS)
