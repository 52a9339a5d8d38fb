"""Compiles functions by numba, and keeps their machine code."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache, NullCache

from caffe_dns import log

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function, compiled when it is first called; the machine code is kept.

    Additions keep their order; a multiplication and an addition may be one instruction.
    """
    return _compiled(function, {"contract"})


def compiled_in_any_order(function: Function) -> Function:
    """The same, but additions may be made in any order, several at a time."""
    return _compiled(function, {"contract", "reassoc"})


def part(function: Function) -> Function:
    """A function that becomes a part of each compiled one that calls it, with its liberties."""
    inlined: Any = numba.njit(inline="always")(function)
    kept: Function = inlined
    return kept


def _compiled(function: Function, liberties: set[str]) -> Function:
    options: dict[str, Any] = {"nogil": True, "fastmath": liberties, "error_model": "numpy"}
    dispatcher: Any = numba.njit(**options)(function)
    try:
        dispatcher._cache = _KeptCode(function)
    except RuntimeError:  # there is no folder that can be written
        dispatcher._cache = _NotKept()
    kept: Function = dispatcher
    return kept


class _KeptCode(FunctionCache):
    """numba's files of machine code, on a disk that may be full, or damaged after a power failure.

    What cannot be read there is compiled anew, and what cannot be written there is not kept.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        code = None
        try:
            code = super().load_overload(sig, target_context)
        except Exception:  # pickle raises anything at a file that was cut short
            with suppress(OSError):
                self.flush()
        if code is None:
            log.info_once(f"Compiling kernels for this processor (kept in {self.cache_path})")
        return code

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception):
            super().save_overload(sig, data)


class _NotKept(NullCache):
    """What is compiled anew in each process."""

    def load_overload(self, sig: Any, target_context: Any) -> None:
        log.info_once(
            "Compiling kernels for this processor, as in every run: there is no folder to keep "
            "them in; NUMBA_CACHE_DIR may name one"
        )
