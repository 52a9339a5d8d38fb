"""All layer types. Importing this package imports its modules, which register them."""

from importlib import import_module
from pkgutil import iter_modules

from caffe_dns.layers.base import Context, Layer, layer_types

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Context", "Layer", "layer_types"]
