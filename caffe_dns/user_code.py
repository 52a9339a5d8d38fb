"""Users' code: finds a module or a class, and reports errors inside it.

Whether that code may run at all is decided by the caller.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType

from caffe_dns.errors import CaffeError, first_line, nearest

#: Whether any has run in this process: it may have files open.
has_run = False


class UserCodeError(CaffeError):
    """An exception inside a user's code, at the place in that code where it arose.

    `original` is that exception itself.
    """

    original: Exception


def load_class(module_name: str, class_name: str, base: type) -> type:
    """The class `class_name` of a module on PYTHONPATH or in the current folder.

    `import caffe` gives caffe_dns.pycaffe there, and from then on in the whole process, unless the
    program has imported another caffe before. Raises CaffeError when there is no such module or
    class, or when it does not derive from `base`, and UserCodeError when the module itself fails.
    """
    _stand_in_for_caffe()
    module = import_module(module_name)
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        raise CaffeError(
            f"the module '{module_name}' ({_file_of(module)}) has no class '{class_name}'"
            f"{nearest(class_name, classes)}"
        )
    if not issubclass(found, base):
        raise CaffeError(
            f"{module_name}.{class_name} does not derive from caffe.Layer{_other_caffe()}"
        )
    return found


def import_module(name: str) -> ModuleType:
    """A module on PYTHONPATH or in the current folder.

    Raises CaffeError when there is none, and UserCodeError when it fails.
    """
    global has_run
    has_run = True
    _add_current_folder()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise CaffeError(
                f"there is no Python module '{name}' in the current folder or on PYTHONPATH"
            ) from None
        raise _explain_import(name, error) from error
    except Exception as error:
        raise _explain_import(name, error) from error


def explain(error: Exception, what: str, files: Collection[str]) -> UserCodeError:
    """`what` raised `error`: an error at the innermost line of `files` that it came through.

    Where it came through none of them, the place is where it was raised.
    """
    text = str(error).strip() and f": {first_line(error)}"
    if isinstance(error, SyntaxError) and error.filename:
        place, line, text = error.filename, error.lineno, f": {error.msg}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        frame = ([frame for frame in frames if frame.filename in files] or frames)[-1]
        place, line = frame.filename, frame.lineno
    told = UserCodeError(f"{what} raised {type(error).__name__}{text}", file=place, line=line)
    told.original = error
    return told


@contextmanager
def as_raised() -> Iterator[None]:
    """Within it, exceptions of users' code come through as they are, for programs in Python."""
    try:
        yield
    except UserCodeError as error:
        raise error.original from None


def source_files(cls: type) -> set[str]:
    """The source files of a class and of its base classes outside this package."""
    files = set()
    for base in cls.__mro__:
        if not base.__module__.startswith(f"{__package__}."):
            with suppress(TypeError, OSError):  # built in
                files.add(inspect.getsourcefile(base) or "")
    return files


def _add_current_folder() -> None:
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)


def _stand_in_for_caffe() -> None:
    # By name, as the pycaffe interface is built on top of nets and layers.
    importlib.import_module("caffe_dns.pycaffe.alias").install_as_caffe()


def _explain_import(name: str, error: Exception) -> UserCodeError:
    """The failed import, at a line of the module that was to be imported first."""
    frames = traceback.extract_tb(error.__traceback__)
    # This file and importlib's stand before it.
    files = [frame.filename for frame in frames if not frame.filename.startswith("<frozen")][2:3]
    return explain(error, f"importing '{name}'", files)


def _file_of(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "built in"


def _other_caffe() -> str:
    caffe = sys.modules.get("caffe")
    if caffe is None or caffe.__name__ == "caffe_dns.pycaffe":
        return ""
    return f" of caffe_dns.pycaffe; `import caffe` gave {_file_of(caffe)}"
