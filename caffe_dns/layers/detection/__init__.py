"""The layers that SSD's fork of Caffe adds, for detecting objects in images.

A net of SSD assigns a few prior boxes (`prior_box`) to each place of some feature maps. For each of
these, it predicts the offset from the box and a score for each class. Boxes are rows of (xmin,
ymin, xmax, ymax), in fractions of the image's width and height unless stated otherwise. What the
layers compute follows the C++ of weiliu89/caffe, branch ssd, whose files the docstrings name.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
