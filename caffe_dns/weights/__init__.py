"""Trained weights between files and nets.

Here belongs the content of .caffemodel, .caffemodel.h5 and .dnsz files, and how it fits a net, with
or without masks; solver states are in `solver.state_file`, other formats in `export`. In order:
`transfer` (files and nets), `hdf5`, `compact` (.dnsz), `fitting` (stored arrays to a layer's
blobs).
"""

from caffe_dns.weights.compact.sizes import fit_definition
from caffe_dns.weights.transfer import (
    copy_from_net,
    copy_trained_layers,
    layer_pieces,
    load_definition_blobs,
    load_weights,
    save_weights,
    share_weights,
    weight_files,
)

__all__ = [
    "copy_from_net",
    "copy_trained_layers",
    "fit_definition",
    "layer_pieces",
    "load_definition_blobs",
    "load_weights",
    "save_weights",
    "share_weights",
    "weight_files",
]
