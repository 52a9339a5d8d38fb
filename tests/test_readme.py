"""What the README says must be so."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tables_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/readme_tables", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
