"""The program `dns`, which is also `python -m caffe_dns`."""

import os
import sys

from caffe_dns import interrupt


def _name_files_in_utf_8() -> None:
    """Start anew in Python's UTF-8 mode, where a locale has names of files in anything else.

    Definitions, states and lists name files in bytes, which are the same in every locale. This
    comes before signals are heeded: those that wait go on waiting. Processes of ours inherit it.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


_name_files_in_utf_8()
interrupt.begin()


def main() -> None:
    """Run the command that the arguments say, and exit."""
    from caffe_dns.cli.main import main as run  # here, because signals are heeded first
    from caffe_dns.cli.threads import wait_briefly, wake_soon

    wait_briefly()
    wake_soon()
    try:
        run()
    finally:
        interrupt.finish()


if __name__ == "__main__":
    main()
