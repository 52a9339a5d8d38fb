"""Which definitions no Caffe takes, whatever their layers mean and whatever their data are.

What dns says of a file is no evidence against it by itself, for dns may be wrong or lack something,
and shapes depend on what a fork's layers do. It is where the rule depends on neither: protobuf's
text format, whose grammar all forks share; numbers of outputs that are missing; a graph whose blobs
are not made, or made twice.
"""

from __future__ import annotations

import re

from caffe_dns.errors import CaffeError

#: What does not follow the text format. A name in the place of an enum's may be a fork's, a string
#: cannot be.
_GRAMMAR = (
    r"expected (?!a \w+ \().*, found|expected .*, found '\"|is never closed|has no partner|"
    r"needs the field"
)
#: Outputs of a convolution and the like, which `LayerSetUp` checks; templates leave them at 0.
_SETTINGS = r"must be given and positive"
#: `Net::AppendTop` and `Net::AppendBottom`.
_GRAPH = r"Unknown bottom blob|produced by multiple sources"


def is_graph_fault(error: CaffeError) -> bool:
    """Whether the blobs of a net are not connected as any Caffe wants it."""
    return re.search(_GRAPH, error.message) is not None


def is_fault(error: CaffeError) -> bool:
    """Whether the definition is wrong for every Caffe."""
    return any(re.search(rule, error.message) for rule in (_GRAMMAR, _GRAPH, _SETTINGS))
