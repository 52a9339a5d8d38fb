"""Nets: from a definition to connected layers, and a forward pass through them.

Here belongs what knows several layers at once; what is in a model file is in `weights`, training in
`solver`. In order: `definition` (which layers, with splits), `building` (layers, connected by
`wiring`, their parameters in `params`), `fusion` (what runs as one), `net`; `debug_info` looks on,
`multiplications` counts.
"""

from caffe_dns.net.definition import with_state
from caffe_dns.net.net import Net, PassObserver
from caffe_dns.net.params import Param
from caffe_dns.net.wiring import Step

__all__ = ["Net", "Param", "PassObserver", "Step", "with_state"]
