"""Caffe's messages (caffe_pb2, generated from proto/caffe.proto), as text and files; upgrades."""
