"""Data from files to batches: databases, lists of images, HDF5, and what is done to each record.

Here belongs what reads, decodes and transforms, in threads of its own, and what writes databases.
The layers that bring batches into a net are in `layers`. Read `database` (what every database
is), then `sources` (records in their order), `batches` and `transform`.
"""

from caffe_dns.data.database import Database, Writer
from caffe_dns.data.db import create_database, open_database

__all__ = ["Database", "Writer", "create_database", "open_database"]
