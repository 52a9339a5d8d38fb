"""Which definitions no Caffe takes, whatever their layers mean and whatever their data are.

What dns says of a file is no evidence against it by itself, for dns may be wrong or lack something.
It is where the rule does not depend on either: protobuf's text format, whose grammar all forks
share; numbers of outputs that are missing; a graph whose blobs are not made, or made twice; shapes
that do not fit although the definition itself gives those of all data.
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
#: What layers check of the shapes of their bottoms.
_SHAPES = (
    r"all bottoms must have|are not divisible by|cannot become|larger than the padded input|"
    r"does not (fit|divide)|is beyond the|do not (evenly divide|fit)|need as many|are not N x C|"
    r"shape mismatch"
)


def is_graph_fault(error: CaffeError) -> bool:
    """Whether the blobs of a net are not connected as any Caffe wants it."""
    return re.search(_GRAPH, error.message) is not None


def is_fault(error: CaffeError, *, made_up: bool) -> bool:
    """Whether the definition is wrong for every Caffe.

    `made_up` says that the layer's bottoms depend on data that were made up.
    """
    rules = (_GRAMMAR, _GRAPH, _SETTINGS) if made_up else (_GRAMMAR, _GRAPH, _SETTINGS, _SHAPES)
    return any(re.search(rule, error.message) for rule in rules)
