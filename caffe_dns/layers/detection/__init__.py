"""The layers that SSD's fork of Caffe adds, for finding objects in images.

A net of SSD gives each place of some feature maps a few prior boxes (`prior_box`), and for each of
these it predicts differences from the box and a score for each class. Boxes are rows of
(xmin, ymin, xmax, ymax), in shares of the image's width and height unless said otherwise. What the
layers compute follows the C++ of weiliu89/caffe, branch ssd, whose files the docstrings name.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
