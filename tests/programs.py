"""The programs of tools/, whose names do not end in .py: as modules, and as processes."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from tests.processes import run_python

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def load(program: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A program as a module, which is known by that name until the test ends."""
    loader = SourceFileLoader(f"tools_{Path(program).name}", str(TOOLS / program))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, loader.name, module)  # dataclasses look for it there
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    return module


def run(program: str, *arguments: str) -> str:
    """What a program prints that ends well, in a process of its own."""
    done = run_python(str(TOOLS / program), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
