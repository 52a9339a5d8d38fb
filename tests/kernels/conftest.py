"""Settings of the tests of kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

#: Functions for whose calls Triton's language has been patched.
_patched: set[Callable[..., Any]] = set()


@pytest.fixture(autouse=True)
def _large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, the time that a kernel takes goes with the number of its programs."""
    if not torch.cuda.is_available():
        layout = pytest.importorskip("caffe_dns.kernels.layout")
        monkeypatch.setattr(layout, "SMALL_TILE", layout.TILE)


@pytest.fixture(autouse=True)
def _patches_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter patches the language for a launch, and for each call of a function in it.

    The latter patches are never undone: the first call is enough, a thousand take long.
    """
    interpreter = pytest.importorskip("triton.runtime.interpreter")

    def call(self: Any, *args: Any, **named: Any) -> Any:
        if self.fn not in _patched:
            _patched.add(self.fn)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **named)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)


@pytest.fixture(autouse=True)
def _without_unread_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter works out for each integer whether it overflows, and has no one look at it.

    It is what takes most of its time.
    """
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    given = interpreter.InterpreterOptions()
    if not given.debug:
        options = dataclasses.replace(given, sanitize_overflow=False)
        monkeypatch.setattr(interpreter.interpreter_builder, "options", options)


@pytest.fixture(autouse=True)
def _scalars_in_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter has a scalar as an array of one number, which NumPy takes for none."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_tensor)
