"""The compact file (.dnsz): a pruned net in few bytes, complete with its definition.

Here belong the formats of its versions, which docs/dnsz.md specifies, and the compression; not how
a model is made small (`export`). Read `files` first; then `lossless` (version 1), and `shared`
(version 3) with its parts: `elements`, `model` with `text` and `grid`, `mixing` and `range_coder`;
`version_2` is the earlier format.
"""

from caffe_dns.weights.compact.contents import Contents
from caffe_dns.weights.compact.files import ENDING, decode, encode, is_compact, read
from caffe_dns.weights.compact.sizes import fit_definition

__all__ = ["ENDING", "Contents", "decode", "encode", "fit_definition", "is_compact", "read"]
