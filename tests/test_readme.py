"""What the tables say must be so."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = runpy.run_path(str(ROOT / "tools" / "readme_tables"))


@pytest.mark.parametrize("page", TOOL["PAGES"])
def test_the_tables_are_up_to_date(page: str) -> None:
    assert TOOL["wanted"](page) == (ROOT / page).read_text(), "run tools/readme_tables"
