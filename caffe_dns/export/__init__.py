"""Export: a net in the forms that other programs read.

Here belong definitions for deployment, models without masks, the file formats, and features in
databases; not what Caffe itself writes while it trains (`weights`, `solver`). Read `deploy` and
`model` first, then `formats`: each format is a module beside it that registers itself with
`export_format`.
"""

from importlib import import_module
from pkgutil import iter_modules

from caffe_dns.export.formats import ExportFormat, export_format, export_formats, find_format
from caffe_dns.export.model import UnmaskedModel

# First those that help lists first; then whatever else lies here.
for _name in ("caffemodel", "onnx_file", "safetensors_file", "compact"):
    import_module(f"{__name__}.{_name}")
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["ExportFormat", "UnmaskedModel", "export_format", "export_formats", "find_format"]
