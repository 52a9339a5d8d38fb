"""Layer types of forks of Caffe: for detection, segmentation and small nets.

Each module is a family; docs/fork_layers.md says whose they are and where they differ. What BVLC's
own layers compute stays in `caffe_dns.layers`; the numbers of forks in files are `proto/forks`'.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
