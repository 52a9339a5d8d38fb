"""What stands in the pages runs as it stands there, and leads to where it says."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.pages import KINDS, ROOT, Desk, blocks_of
from tests.processes import run_python

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Pages with tests of their own: tests/test_extending.py.
ELSEWHERE = {"extending"}
#: Pages whose code changes what other code imports, and has a process for itself.
APART = {"pycaffe", "pytorch"}
#: The end of `[words](where)`, a picture's, too.
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning")
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = blocks_of(page)
    assert {block.kind for block in blocks} <= KINDS
    if page.stem in ELSEWHERE | APART or not blocks:
        return
    desk = Desk(tmp_path, monkeypatch)
    desk.lay_out()
    for block in blocks:
        try:
            desk.run(block)
        except (Exception, pytest.fail.Exception) as error:
            raise AssertionError(f"{page.name}, line {block.line}") from error


@pytest.mark.parametrize("name", sorted(APART))
def test_the_code_of_a_page_runs_apart(name: str, tmp_path: Path) -> None:
    blocks = [block.text for block in blocks_of(ROOT / f"docs/{name}.md") if block.kind == "python"]
    assert blocks
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "page.py").write_text("\n".join(blocks))
    # Compilers take minutes on a CPU.
    quick = {"TORCHDYNAMO_DISABLE": "1", "GLOG_minloglevel": "2"}
    done = run_python("page.py", folder=tmp_path, **quick)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not find_spec("lib2to3"), reason="this Python has no 2to3 any more")
def test_what_sets_programs_for_python_2_right(tmp_path: Path) -> None:
    for folder in ("lib/nms", "tools", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    program = tmp_path / "bin" / "2to3"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore -m lib2to3 "$@"\n')
    program.chmod(0o755)
    (tmp_path / "tools" / "train.py").write_text("print 'begin'\n")
    (tmp_path / "lib" / "old.py").write_text(
        "config = yaml.load(file)\nx = y.astype(np.float)\nwhole = np.float32\n"
        "images = BATCH_SIZE / len(roidb)\nforeground = np.round(cfg.SHARE * each)\n"
        "start = 4 * cls\n"
    )
    blocks = [block for block in blocks_of(ROOT / "docs" / "pycaffe.md") if block.kind == "sh"]
    for block in blocks:
        done = subprocess.run(
            ["bash", "-ec", block.text],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "tools" / "train.py").read_text() == "print('begin')\n"
    assert (tmp_path / "lib" / "old.py").read_text() == (
        "config = yaml.unsafe_load(file)\nx = y.astype(float)\nwhole = np.float32\n"
        "images = BATCH_SIZE // len(roidb)\nforeground = int(np.round(cfg.SHARE * each))\n"
        "start = int(4 * cls)\n"
    )
    for device in ("cpu", "gpu"):
        text = (tmp_path / "lib" / "nms" / f"{device}_nms.py").read_text()
        assert text == f"from nms.py_cpu_nms import py_cpu_nms as {device}_nms\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        file, _, heading = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = page.parent / file if file else page
        assert target.exists(), link
        if heading and target.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}
            assert heading in slugs, link


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_every_command_is_in_the_table_for_those_who_come_from_caffe() -> None:
    from caffe_dns.cli.main import ACTIONS

    page = (ROOT / "docs" / "coming_from_caffe.md").read_text()
    assert not [action for action in ACTIONS if f"dns {action}" not in page]


def test_the_python_api_is_up_to_date() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "api_page"))
    assert tool["page"]() == tool["PAGE"].read_text(), "run tools/api_page"
