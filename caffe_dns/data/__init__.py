"""Data from files to batches: databases, image lists, HDF5, and the processing of each record.

Here belongs what reads, decodes and transforms data, in threads of its own, and what writes
databases. The layers that bring batches into a net are in `layers`. Read `database` (what every
database is), then `sources` (records in their order), `batches` and `transform`.
"""

from caffe_dns.data.database import Database, Writer
from caffe_dns.data.db import create_database, open_database

__all__ = ["Database", "Writer", "create_database", "open_database"]
