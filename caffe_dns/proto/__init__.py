"""Caffe's messages (caffe_pb2, generated from proto/caffe.proto), their text form and their upgrades."""
