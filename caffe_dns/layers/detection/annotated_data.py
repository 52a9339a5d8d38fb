"""AnnotatedData: images with the objects in them, from a database (`annotated_data_layer.cpp`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial

import torch
from torch import Tensor

from caffe_dns import log, rng
from caffe_dns.data.annotated_batches import AnnotatedBatches, Normalization
from caffe_dns.data.annotated_datum import MOST_OBJECTS
from caffe_dns.data.annotated_task import AnnotatedMaker, DrawnSizes
from caffe_dns.data.annotated_transform import AnnotatedTransform
from caffe_dns.data.batches import Share
from caffe_dns.data.random_resizing import refuse_resizing
from caffe_dns.data.transform import read_mean, refuse_of_others, shape_text
from caffe_dns.layers.base import Shape, layer_types
from caffe_dns.layers.database_records import DatabaseRecords

_FIELD = "annotated_data_param"
#: How far the sum of several probabilities may be off.
_OFF = 0.01


@layer_types.register("AnnotatedData")
class AnnotatedData(DatabaseRecords):
    """Images and their objects in the order of the keys or shuffled, over and over.

    Tops: images N x C x H x W, and 1 x 1 x objects x 8: the image's number in the batch, label,
    number of the object, box in shares of the image, and whether it is difficult; a row of -1 where
    there is none. How many rows there are is known only in the forward pass; `reshape` says those
    of the first record. With `yolo_data_type: 1`, it is N x 1 x 300 x 5: label from 0 on, centre
    and sides. Where records have no type, the second top is a label for each image. Of several
    sizes in `resize_param`, all images of a batch get one, drawn every ten batches.
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.batch_size = self.param.data_param.batch_size
        self.check_database()
        options = self.param.annotated_data_param
        refuse_resizing(self.param.transform_param)
        refuse_of_others(self.param.transform_param, "AnnotatedData")
        if not 0 <= options.yolo_data_jitter < 1:
            raise self.error("0 to less than 1 would be right", f"{_FIELD}.yolo_data_jitter")
        self.transform = AnnotatedTransform(
            self.param.transform_param,
            options.batch_sampler,
            self.param.phase,
            options.yolo_data_jitter,
        )
        self._check_sizes()
        if self.transform.varies_size and self.batch_size > 1:
            raise self.error("must be 1 for resize_mode FIT_SMALL_SIZE", "data_param.batch_size")
        with closing(self.open_in_order(announce=True)) as source:
            (value,) = source.load([source.fetch(0)])
            with source.at(0):
                first = self._maker(with_boxes=False).parse(value)
        channels = first.image.shape[2]
        self.transform.check(channels)
        self._shape: Shape = (self.batch_size, channels, *self.transform.output_size(first.size))
        log.info("output data size: " + ",".join(str(extent) for extent in self._shape))
        self.normalization = Normalization(self._mean(), self.param.transform_param.scale)
        self.with_boxes = first.typed
        if options.HasField("anno_type") and self.num_tops > 1:
            log.warning("type stored in AnnotatedDatum is shadowed.")
            self.with_boxes = True
        self._first_objects = max(1, len(first.objects))

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        labels: Shape = (self.batch_size,)
        if self.with_boxes:
            rows = (self.batch_size, 1, MOST_OBJECTS, 5), (1, 1, self._first_objects, 8)
            labels = rows[0] if self.centred else rows[1]
        return [self._shape, labels][: self.num_tops]

    def reader(self, share: Share, *, pin: bool) -> AnnotatedBatches:
        return AnnotatedBatches(
            self.open_records(),
            self._maker(with_boxes=self.with_boxes and self.num_tops > 1, start=share.start),
            self.normalization,
            share,
            self.batch_size,
            for_gpu=pin,
        )

    def _maker(self, *, with_boxes: bool, start: int = 0) -> AnnotatedMaker:
        transform = self.param.transform_param
        return AnnotatedMaker(
            self.transform,
            partial(rng.numpy_generator, self.context.seed, f"annotated/{self.name}"),
            color=transform.force_color or self.param.data_param.force_encoded_color,
            gray=transform.force_gray,
            with_boxes=with_boxes,
            centred=self.centred,
            sizes=self._sizes(start),
        )

    @property
    def centred(self) -> bool:
        """Whether objects are told as MobileNet-YOLO's layers take them."""
        return self.param.annotated_data_param.yolo_data_type == 1

    def _sizes(self, start: int) -> DrawnSizes | None:
        sizes = self.transform.sizes
        if len(sizes) < 2:
            return None
        stream = f"annotated/{self.name}/size"
        return DrawnSizes(
            [size.prob for size in sizes],
            self.batch_size * self.ranks,
            start,
            partial(rng.uniform, self.context.seed, stream),
        )

    def _check_sizes(self) -> None:
        """Raise CaffeError for several sizes that no one can be drawn of, or no mean fits."""
        sizes = self.transform.sizes
        if len(sizes) < 2:
            return
        if abs(sum(size.prob for size in sizes) - 1) > _OFF or min(s.prob for s in sizes) < 0:
            what = f"has a prob in each of {len(sizes)}; numbers of a sum of 1 would be right"
            raise self.error(what, "transform_param.resize_param")
        if self.param.transform_param.HasField("mean_file"):
            what = "has one size, images come out in several; mean_value would do"
            raise self.error(what, "transform_param.mean_file")

    def _mean(self) -> Tensor | None:
        """What is subtracted of every image as it comes out, mirrored or not."""
        transform = self.param.transform_param
        values = torch.tensor(list(transform.mean_value), dtype=torch.float32)
        channels = self._shape[1]
        if transform.HasField("mean_file"):
            if len(values):
                raise self.error(
                    "has both mean_file and mean_value; give one of them", "transform_param"
                )
            log.info(f"Loading mean file from: {transform.mean_file}")
            mean = read_mean(transform.mean_file)
            if tuple(mean.shape) != self._shape[1:]:
                raise self.error(
                    f"the mean is of {shape_text(tuple(mean.shape))}, the images come out with "
                    f"{shape_text(self._shape[1:])} (channels, height, width)",
                    "transform_param.mean_file",
                )
            return mean
        if len(values) not in (0, 1, channels):
            raise self.error(
                f"is given {len(values)} times for images of {channels} channel(s); give one "
                "value, or one for each channel",
                "transform_param.mean_value",
            )
        return values.view(-1, 1, 1) if len(values) else None
