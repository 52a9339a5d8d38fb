"""Caffe's update rules, by the solver type that a definition names (`src/caffe/solvers`).

Here belongs how gradients become updates; when that happens is in `solver.iteration`. Read `base`
first. A new rule is one module with one class under `solver_types.register`.
"""

from importlib import import_module
from pkgutil import iter_modules

from caffe_dns.solver.update_rules.base import UpdateRule, solver_types

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["UpdateRule", "solver_types"]
