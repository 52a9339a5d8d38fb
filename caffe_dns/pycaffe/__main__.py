"""`python -m caffe_dns.pycaffe script.py [args]`: run a program that does `import caffe`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from caffe_dns.pycaffe.alias import install_as_caffe


def main() -> None:
    """Run the program as `python script.py [args]` would, with this package as caffe."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m caffe_dns.pycaffe script.py [args]")
    script = sys.argv[1]
    if not Path(script).is_file():
        sys.exit(f"caffe_dns.pycaffe: there is no file '{script}'")
    install_as_caffe()
    sys.argv = sys.argv[1:]
    # In place of the folder that `python -m` has put there.
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
