"""The code of the pages in docs/ runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["pycaffe", "pytorch"]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL)
    assert blocks
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "page.py").write_text("\n".join(blocks))
    # Compilers take minutes on a CPU.
    quick = {"TORCHDYNAMO_DISABLE": "1", "GLOG_minloglevel": "2"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "page.py"],
        cwd=tmp_path,
        env={**os.environ, **quick},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
