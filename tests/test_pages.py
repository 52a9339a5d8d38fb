"""What stands in the pages runs as it stands there, and leads to where it says."""

from __future__ import annotations

import re
import runpy
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
