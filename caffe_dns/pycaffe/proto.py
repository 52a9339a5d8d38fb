"""`caffe.proto`: the messages under the name that pycaffe gives them."""

from caffe_dns.proto import caffe_pb2

__all__ = ["caffe_pb2"]
