"""HDF5Data: reads the datasets with the names of its tops (`hdf5_data_layer.cpp`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from caffe_dns import log
from caffe_dns.data.batches import Share
from caffe_dns.data.hdf5_rows import HDF5Batches, inspect_files
from caffe_dns.data.image_files import read_words
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Shape, layer_types
from caffe_dns.layers.batch_data import BatchDataLayer
from caffe_dns.layers.checks import WrongLabel


@layer_types.register("HDF5Data")
class HDF5Data(BatchDataLayer):
    """Rows in the order of the files, or files and rows shuffled anew in each round."""

    tops = (1, None)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.hdf5_data_param
        self.batch_size = settings.batch_size
        self.check_batch_size("hdf5_data_param.batch_size")
        if self.param.HasField("transform_param"):
            raise self.error("HDF5Data does not transform data; take it out", "transform_param")
        if not settings.source:
            raise self.error("must name a list of HDF5 files", "hdf5_data_param.source")
        log.info(f"Loading list of HDF5 filenames from: {settings.source}")
        paths = list(read_words(settings.source))
        log.info(f"Number of HDF5 files: {len(paths)}")
        if not paths:
            raise self.error(f"{settings.source} lists no files", "hdf5_data_param.source")
        try:
            self._files = inspect_files(paths, list(self.param.top))
        except CaffeError as error:
            error.message += f" (listed in {settings.source})"
            raise

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [(self.batch_size, *shape) for shape in self._files.row_shapes]

    def name_record(self, error: WrongLabel, top: str) -> CaffeError:
        with closing(self.reader(Share(), pin=False)) as rows:
            for records in self.lately_used():
                for record in records:
                    if not all(map(error.fits, rows.values(record, top).ravel().astype(int))):
                        return rows.explain(error, record)
        return error

    def reader(self, share: Share, *, pin: bool) -> HDF5Batches:
        seed = self.context.seed if self.param.hdf5_data_param.shuffle else None
        stream = f"shuffle/{self.name}"
        return HDF5Batches(self._files, share, self.batch_size, seed=seed, stream=stream, pin=pin)
