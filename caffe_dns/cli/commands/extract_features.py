"""`dns extract_features` (tools/extract_features.cpp).

Caffe's tool shows only lines of severity ERROR, so it logs everything at that severity. So does
this.
"""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs


@click.command()
@click.argument("pretrained_net_param")
@click.argument("feature_extraction_proto_file")
@click.argument("blob_names")
@click.argument("dataset_names")
@click.argument("num_mini_batches", type=int)
@click.argument("db_type")
@click.argument("mode", default="CPU", metavar="[CPU/GPU]")
@click.argument("device_id", type=int, default=0)
@flags.no_surgery
@flags.python_layers
@flags.imports
@runs("extract_features")
def command() -> None:
    """Run a trained net on the data that its data layer reads, and save blobs to databases.

    BLOB_NAMES and DATASET_NAMES are lists separated by commas. Each blob gets a database of its
    own, of the kind DB_TYPE (lmdb or leveldb), with one record for each image:

    \b
    dns extract_features x.caffemodel net.prototxt fc6,fc7 fc6_db,fc7_db 10 lmdb GPU 0
    """
