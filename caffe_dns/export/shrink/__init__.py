"""Shrinks a pruned model: removes, exactly, what no output depends on.

Here belong what is known about the channels of every blob, and how each type of layer passes
channels on. Which weights are zero was decided by surgery. Read `graph` first, then `rules`: each
type of layer is described by a class that registers itself with `channel_rules`. Then `shrinking`,
which applies the rules, `folding`, which removes whole layers, and `ordering`.
"""

from importlib import import_module

from caffe_dns.export.shrink.rules import Rule, channel_rules

for _name in ("weighted", "channelwise", "forks", "arrangement"):
    import_module(f"{__name__}.{_name}")

from caffe_dns.export.shrink.folding import fold  # noqa: E402 (after the rules it asks for)
from caffe_dns.export.shrink.ordering import put_in_order  # noqa: E402
from caffe_dns.export.shrink.shrinking import Shrunk, shrink, with_data  # noqa: E402

__all__ = ["Rule", "Shrunk", "channel_rules", "fold", "put_in_order", "shrink", "with_data"]
