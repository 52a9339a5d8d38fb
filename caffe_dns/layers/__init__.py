"""All layer types. Importing this package imports its modules, which register them.

Here belongs what one layer computes, and what it has to know about itself; how layers are connected
is in `net`. Read `base` first (what every layer is), then any family; `masked` has what layers with
masks share. A new type is one module with one class under `layer_types.register`.
"""

from importlib import import_module
from pkgutil import iter_modules

from caffe_dns.layers.base import Context, Layer, layer_types

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Context", "Layer", "layer_types"]
