"""Plugins: users' code that adds layer types, fillers, rate policies and the like.

A module is named on the command line (`--import MODULE`), or an installed package names it in the
entry-point group `caffe_dns.plugins`. Either way, importing it registers what it adds. A file that
a definition or a model names is never imported here.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from caffe_dns.errors import CaffeError
from caffe_dns.user_code import import_module

GROUP = "caffe_dns.plugins"


def import_plugin(name: str) -> None:
    """Import a module from PYTHONPATH or the current folder, for what it registers.

    Raises CaffeError when there is none of this name, and UserCodeError when it fails.
    """
    import_module(name)


@cache
def load_installed() -> None:
    """Import the modules that installed packages name in the entry-point group, once.

    Raises a CaffeError that names the package.
    """
    for entry in entry_points(group=GROUP):
        try:
            import_module(entry.module)
        except CaffeError as error:
            package = entry.dist.name if entry.dist is not None else "a package"
            raise CaffeError(f"the plugin '{entry.name}' of {package} fails: {error}") from None
