"""ImageData: image files named in a list (`image_data_layer.cpp`)."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_dns import log
from caffe_dns.data.batches import ImageBatches, Share
from caffe_dns.data.image_list import ImageList, ImageListSource, ReadSettings
from caffe_dns.data.sources import Order
from caffe_dns.layers.base import Shape, layer_types
from caffe_dns.layers.batch_data import ImageBatchLayer
from caffe_dns.layers.checks import check_sides
from caffe_dns.proto.caffe_pb2 import ImageDataParameter
from caffe_dns.proto.fields import refuse_fields

#: Layer types, and the fields of image_data_param that only they read.
_OF_THEIR_OWN = {
    "VideoData": ("new_length", "use_image", "use_temporal_jitter", "sampling_rate"),
    "ImageSegData": ("label_type", "ignore_label"),
}


def refuse_of_others(settings: ImageDataParameter, own: str = "") -> None:
    """Raise CaffeError, with the field, for fields that only other types than `own` read."""
    refuse_fields(settings, "image_data_param", _OF_THEIR_OWN, own)


@layer_types.register("ImageData")
class ImageData(ImageBatchLayer):
    """Images and labels in the order of the list, or reshuffled in each round.

    Unlike in Caffe, where every rank reads the whole list, the ranks share the images as those of
    Data do.
    """

    tops = (2, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.image_data_param
        refuse_of_others(settings)
        self.batch_size = settings.batch_size
        self.check_batch_size("image_data_param.batch_size")
        if not settings.source:
            raise self.error("must name a list of images", "image_data_param.source")
        check_sides(self, "image_data_param", "new")
        log.info(f"Opening file {settings.source}")
        self._images = ImageList(settings.source)
        if settings.shuffle:
            log.info("Shuffling data")
        log.info(f"A total of {len(self._images)} images.")
        if settings.rand_skip:
            self._check_skip(self.draw_skip(settings.rand_skip))
        source = self.records()
        with source.at(0):
            self.first_shape = source.decode(source.fetch(0))[0].shape
        super().build(bottom_shapes)

    def reader(self, share: Share, *, pin: bool) -> ImageBatches:
        source, size = self.resized(self.records()), self.batch_size
        return ImageBatches(source, self.transform, self.draws(), share, size, for_gpu=pin)

    def _check_skip(self, skip: int) -> None:
        log.info(f"Skipping first {skip} data points.")
        if skip >= len(self._images):
            raise self.error(
                f"skips {skip} images of {len(self._images)}", "image_data_param.rand_skip"
            )

    def records(self) -> ImageListSource:
        settings = self.param.image_data_param
        seed = self.context.seed if settings.shuffle else None
        return ImageListSource(
            settings.source,
            self._images,
            Order(len(self._images), seed, f"shuffle/{self.name}"),
            ReadSettings(
                settings.root_folder, settings.new_height, settings.new_width, settings.is_color
            ),
            self.draw_skip(settings.rand_skip),
        )
