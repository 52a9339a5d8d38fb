"""Making a pruned model small: taking away, exactly, what no output depends on.

Here belong what is known of the channels of every blob, and how each type of layer passes channels
on. Weights are not chosen here; that was surgery's business. Read `graph` first, then `rules`: how
a type of layers is seen through is one class, which registers itself with `channel_rules`. Then
`shrinking`, which asks the rules, `folding`, which takes whole layers away, and `ordering`.
"""

from importlib import import_module

from caffe_dns.export.shrink.rules import Rule, channel_rules

for _name in ("weighted", "channelwise", "forks", "arrangement"):
    import_module(f"{__name__}.{_name}")

from caffe_dns.export.shrink.folding import fold  # noqa: E402 (after the rules it asks for)
from caffe_dns.export.shrink.ordering import put_in_order  # noqa: E402
from caffe_dns.export.shrink.shrinking import Shrunk, shrink, with_data  # noqa: E402

__all__ = ["Rule", "Shrunk", "channel_rules", "fold", "put_in_order", "shrink", "with_data"]
