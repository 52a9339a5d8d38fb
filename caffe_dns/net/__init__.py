"""Nets: from a definition to connected layers, and the passes through them.

Here belongs what knows several layers at once; model files are in `weights`, training is in
`solver`. In order: `definition` (which layers, with splits), `building` (layers, connected by
`wiring`, their parameters in `params`), `fusion` (which layers run as one), `net`; `debug_info`
logs values, `multiplications` counts MACs.
"""

from caffe_dns.net.definition import with_state
from caffe_dns.net.net import Net, PassObserver
from caffe_dns.net.params import Param
from caffe_dns.net.wiring import Step

__all__ = ["Net", "Param", "PassObserver", "Step", "with_state"]
