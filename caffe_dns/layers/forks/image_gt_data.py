"""ImageGtData of MS-CNN: images around one object each, and labels for the cells of maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from caffe_dns import log, rng
from caffe_dns.data.batches import Share
from caffe_dns.data.boxes import Boxes
from caffe_dns.data.datum import Image, channels_first
from caffe_dns.data.field_labels import NUMBERS, FieldLabels, FieldMap
from caffe_dns.data.hdf5_rows import ArrayBatch
from caffe_dns.data.image_files import ImageFiles
from caffe_dns.data.object_crops import ObjectCrops, Placed, Sizes, aspect_steps
from caffe_dns.data.object_files import ListedObjects, read_object_file
from caffe_dns.data.sources import Order
from caffe_dns.data.workers import Workers, reading_threads
from caffe_dns.layers.base import Shape, layer_types
from caffe_dns.layers.batch_data import BatchDataLayer

_FIELD = "image_gt_data_param"
#: What images are decoded to.
_CHANNELS = 3
#: The row where there is no object: an ignored one.
_NO_OBJECT = (0, 1, 1, 2, 2, 1, 1)


class ObjectBatches:
    """The batches of one layer, one after the other."""

    def __init__(
        self,
        images: Sequence[ListedObjects],
        order: Order,
        crops: ObjectCrops,
        labels: FieldLabels,
        normalize: Callable[[Image], Image],
        draws: Callable[[int], np.random.Generator],
        share: Share,
        batch_size: int,
        *,
        cache: bool,
        for_gpu: bool,
    ) -> None:
        self._images = images
        self._order = order
        self._crops = crops
        self._labels = labels
        self._normalize = normalize
        self._draws = draws
        self._numbers = share.batches(batch_size)
        self._files = ImageFiles(keep=cache)
        self._workers = Workers(reading_threads(for_gpu=for_gpu))

    def read(self) -> ArrayBatch:
        """The next batch. Raises CaffeError for images that cannot be used."""
        numbers = next(self._numbers).tolist()
        images = np.zeros((len(numbers), _CHANNELS, *self._labels.canvas), np.float32)

        def make(at: int) -> tuple[Placed, list[Boxes]]:
            placed = self._place(numbers[at])
            self._show(placed, images[at])
            return placed, self._labels.label(placed)

        placed, labels = zip(*self._workers.map(make, range(len(numbers))), strict=True)
        arrays = [images, *map(np.stack, zip(*labels, strict=True)), _rows(placed)]
        return ArrayBatch([torch.from_numpy(array.astype(np.float32)) for array in arrays])

    def _place(self, number: int) -> Placed:
        listed = self._images[self._order.index(number)]
        image = self._files.read(listed.path)
        placed = self._crops.place(image, listed.objects, self._draws(number))
        return replace(placed, objects=self._labels.ignore(placed.objects))

    def _show(self, placed: Placed, canvas: Image) -> None:
        """Put an image into its place on a canvas [C, H, W]."""
        part = self._normalize(channels_first(placed.pixels).astype(np.float32))
        rows, columns = part.shape[1:]
        top, left = placed.top, placed.left
        canvas[:, top : top + rows, left : left + columns] = part

    def close(self) -> None:
        self._workers.close()


def _rows(placed: Sequence[Placed]) -> Image:
    """The objects of all images, [n, 7, 1, 1]: image, corners, class, whether ignored."""
    rows: list[Sequence[float]] = [
        [at, *box, label, ignored]
        for at, each in enumerate(placed)
        for box, label, ignored in zip(
            each.objects.boxes, each.objects.classes, each.objects.ignored, strict=True
        )
    ]
    return np.array(rows or [_NO_OBJECT], np.float32)[..., None, None]


@layer_types.register("ImageGtData")
class ImageGtData(BatchDataLayer):
    """Images, and a map of labels for each `field_w`, `field_h` and `downsample_rate`.

    Tops: N x 3 x H x W; for each map N x 6 x rows x columns (see `data.field_labels`); with
    `output_gt_boxes` the objects R x 7 x 1 x 1: image, corners, class, and whether it is ignored.
    How many there are is known only in the forward pass; `reshape` says one. Images are resized,
    cut and framed as `data.object_crops` says, in both phases.
    """

    tops = (2, None)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.image_gt_data_param
        self.batch_size = settings.batch_size
        self.check_batch_size(f"{_FIELD}.batch_size")
        if not settings.source:
            raise self.error("must name a list of images and objects", f"{_FIELD}.source")
        if settings.fg_img_multiple < 1:
            raise self.error("must be at least 1", f"{_FIELD}.fg_img_multiple")
        self._refuse_what_is_not_read()
        self._maps = self._read_maps()
        log.info(
            f"Window data layer:\n  batch size: {self.batch_size}\n"
            f"  cache_images: {int(settings.cache_images)}\n"
            f"  root_folder: {settings.root_folder}"
        )
        listed = read_object_file(settings.source, settings.root_folder)
        wrong = next((image for image in listed if image.shape[0] != _CHANNELS), None)
        if wrong is not None:
            raise self.error(
                f"says that {wrong.path} has {wrong.shape[0]} channels; images are decoded to 3",
                f"{_FIELD}.source",
            )
        self._images = [
            image
            for image in listed
            for _ in range(settings.fg_img_multiple if not image.objects.ignored.all() else 1)
        ]
        log.info(f"Number of collecting images: {len(self._images)}")
        if settings.shuffle:
            log.info("Shuffling data")
        self._crops = self._read_crops(listed[-1].shape[1:])
        self._check_maps()
        log.info("output data size: " + ",".join(map(str, self.reshape([])[0])))

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        canvas = self._crops.canvas
        tops: list[Shape] = [(self.batch_size, _CHANNELS, *canvas)]
        tops += [(self.batch_size, NUMBERS, *map_.size(canvas)) for map_ in self._maps]
        if self.param.image_gt_data_param.output_gt_boxes:
            tops.append((1, 7, 1, 1))
        return tops

    def reader(self, share: Share, *, pin: bool) -> ObjectBatches:
        settings = self.param.image_gt_data_param
        labels = FieldLabels(
            self._maps,
            self._crops.canvas,
            settings.fg_threshold,
            settings.min_gt_width,
            settings.min_gt_height,
        )
        seed = self.context.seed if settings.shuffle else None
        return ObjectBatches(
            self._images,
            Order(len(self._images), seed, f"shuffle/{self.name}"),
            self._crops,
            labels,
            self._normalize,
            partial(rng.numpy_generator, self.context.seed, f"objects/{self.name}"),
            share,
            self.batch_size,
            cache=settings.cache_images,
            for_gpu=pin,
        )

    def _normalize(self, pixels: Image) -> Image:
        values = np.array(self.param.transform_param.mean_value or [0], np.float32)
        result: Image = (pixels - values[:, None, None]) * np.float32(
            self.param.image_gt_data_param.scale
        )
        return result

    def _refuse_what_is_not_read(self) -> None:
        settings, transform = self.param.image_gt_data_param, self.param.transform_param
        for name in ("mirror", "mean_file"):
            if settings.HasField(name):
                what = {"mirror": "mirror", "mean_file": "mean_value"}[name]
                raise self.error(
                    f"is not read in the fork; give {what} in transform_param", f"{_FIELD}.{name}"
                )
        for field, _ in transform.ListFields():
            if field.name not in ("mirror", "mean_value"):
                raise self.error(
                    f"is not read in the fork; scale and sizes are given in {_FIELD}",
                    f"transform_param.{field.name}",
                )
        if len(transform.mean_value) not in (0, 1, _CHANNELS):
            raise self.error(
                "give one value, or one for each of 3 channels", "transform_param.mean_value"
            )

    def _read_maps(self) -> list[FieldMap]:
        settings = self.param.image_gt_data_param
        columns = [settings.field_w, settings.field_h, settings.downsample_rate]
        count = len(settings.downsample_rate)
        for name, values in zip(("field_w", "field_h", "downsample_rate"), columns, strict=True):
            if len(values) != count or not count or min(values) < 1:
                raise self.error(
                    "a positive value for each map of labels would be right", f"{_FIELD}.{name}"
                )
        if settings.coord_num != 4:
            raise self.error("4 would be right", f"{_FIELD}.coord_num")
        wanted = 1 + count + settings.output_gt_boxes
        if self.num_tops != wanted:
            raise self.error(
                f"{wanted} would be right: images, {count} map(s) of labels"
                + (", objects" if settings.output_gt_boxes else ""),
                "top",
            )
        return [FieldMap(*values) for values in zip(*columns, strict=True)]

    def _check_maps(self) -> None:
        height, width = self._crops.canvas
        for map_ in self._maps:
            if min(map_.size(self._crops.canvas)) < 1:
                raise self.error(
                    f"{map_.rate} leaves no cell for images of {height} x {width}",
                    f"{_FIELD}.downsample_rate",
                )

    def _read_crops(self, last: Sequence[int]) -> ObjectCrops:
        settings = self.param.image_gt_data_param
        resized = None
        canvas = [*last]
        if settings.HasField("resize_width") and settings.HasField("resize_height"):
            resized = (settings.resize_height, settings.resize_width)
            canvas = [*resized]
        if settings.HasField("crop_width") and settings.HasField("crop_height"):
            for axis, crop in enumerate((settings.crop_height, settings.crop_width)):
                name = ("crop_height", "crop_width")[axis]
                if crop > canvas[axis]:
                    raise self.error(
                        f"is {crop}; at most {canvas[axis]} would be right", f"{_FIELD}.{name}"
                    )
                canvas[axis] = crop or canvas[axis]
        if min(canvas) < 1:
            raise self.error("images need a positive height and width", _FIELD)
        mirror = self.param.transform_param.mirror
        return ObjectCrops((canvas[0], canvas[1]), resized, mirror, self._read_sizes())

    def _read_sizes(self) -> Sizes | None:
        settings = self.param.image_gt_data_param
        wanted = settings.HasField("min_scale") and settings.HasField("max_scale")
        if not settings.do_multiple_scale or not wanted:
            return None
        if not 0 < settings.min_scale <= settings.max_scale:
            raise self.error("at least min_scale > 0 would be right", f"{_FIELD}.max_scale")
        aspects = None
        if settings.HasField("min_whaspect") and settings.HasField("max_whaspect"):
            aspects = (settings.min_whaspect, settings.max_whaspect)
            if aspects[0] <= 0 or aspect_steps(aspects) < 1:
                raise self.error(
                    "more than min_whaspect > 0 would be right", f"{_FIELD}.max_whaspect"
                )
        return Sizes(settings.min_scale, settings.max_scale, aspects)
