"""Imports point one way, and files and functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "caffe_dns"
FILES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if path.name != "caffe_pb2.py"  # generated
)
#: All rooms, from the bottom to the top: nothing imports what stands after it.
ORDER = [
    {"encoding", "interrupt", "rng"},
    {"errors", "log"},
    {"files", "user_code"},
    {"plugins"},
    {"registry"},
    {"proto"},
    {"blob", "fillers", "lr_policy", "mask_rules"},
    {"device"},
    {"kernels"},
    {"data"},
    {"layers"},
    {"net"},
    {"weights"},
    {"sparse"},
    {"parallel"},
    {"surgery"},
    {""},
    {"solver"},
    {"export"},
    {"reports"},
    {"profile"},
    {"pycaffe"},
    {"cli"},
    {"__main__"},
]


def part(module: str) -> str:
    """The module or folder of the package that a dotted name lies in; `` for the package itself."""
    return module.split(".")[1] if "." in module else ""


class Source(NamedTuple):
    """What is asked about a file."""

    #: Other parts of the package, also those imported inside functions.
    imports: set[str]
    #: The longest function: how many lines, and its name.
    longest: tuple[int, str]
    docstring: str


@cache
def source(path: Path) -> Source:
    """A file, parsed once."""
    module = ast.parse(path.read_text())
    imports: set[str] = set()
    longest = (0, "")
    for node in ast.walk(module):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports.update(parts_of(node))
        elif isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
            longest = max(longest, (lines, node.name))
    return Source(imports, longest, ast.get_docstring(module) or "")


def parts_of(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The parts of the package that a statement imports."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif node.module == "caffe_dns":
        # Its modules, or what the package itself offers.
        modules = {file.stem for file in PACKAGE.iterdir()}
        names = [
            f"caffe_dns.{alias.name}" if alias.name in modules else "caffe_dns"
            for alias in node.names
        ]
    else:
        names = [node.module] if node.module else []
    return (part(name) for name in names if name.split(".")[0] == "caffe_dns")


@cache
def graph() -> dict[str, set[str]]:
    """What each part of the package imports from the others."""
    found: dict[str, set[str]] = {}
    for path in FILES:
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py").removeprefix("__init__")
        found.setdefault(module, set()).update(source(path).imports - {module})
    return found


def test_there_are_no_cycles() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def test_the_order_names_every_room() -> None:
    assert set().union(*ORDER) == set(graph())


def test_few_modules_lie_outside_of_rooms() -> None:
    assert len([path for path in FILES if path.parent == PACKAGE]) <= 14


@pytest.mark.parametrize("room", sorted({path.parent for path in FILES} - {PACKAGE}))
def test_every_room_says_what_belongs_there(room: Path) -> None:
    said = source(room / "__init__.py").docstring
    assert said.count(".") >= 2 and len(said) > 100


@pytest.mark.parametrize("level", range(len(ORDER)))
def test_nothing_imports_what_stands_above_it(level: int) -> None:
    above = set().union(*ORDER[level + 1 :])
    for module in ORDER[level]:
        assert not graph()[module] & above, f"{module} imports {graph()[module] & above}"


def test_only_main_imports_the_commands() -> None:
    assert {module for module, used in graph().items() if "cli" in used} == {"__main__"}


def test_every_part_is_reached() -> None:
    used = set().union(*graph().values())
    assert set(graph()) - used <= {"__main__", "pycaffe"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 400
    lines, name = source(path).longest
    assert lines <= 50, name
    assert source(path).docstring or not text.strip(), "says nothing of itself"
