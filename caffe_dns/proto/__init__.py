"""Caffe's messages, as text and as bytes, of every version and fork.

Here belongs what turns files into messages and back; what a message means is not known here. Read
`text` (the files), then `upgrade` (what old ones become). `caffe_pb2` is made from
proto/caffe.proto by `make proto`.
"""

from caffe_dns.proto.text import Parsed, read_text, to_text, write_text
from caffe_dns.proto.upgrade import read_net, read_solver, read_weights

__all__ = [
    "Parsed",
    "read_net",
    "read_solver",
    "read_text",
    "read_weights",
    "to_text",
    "write_text",
]
