"""The contents of a compact file, whatever its version."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caffe_dns.proto.caffe_pb2 import NetParameter


@dataclass
class Contents:
    """A definition, remarks for whoever uses it, and each layer's arrays in Caffe's order."""

    definition: NetParameter
    remarks: list[str]
    blobs: list[list[np.ndarray]]
