"""DenseImageData of SegNet and ENet: images with a label for each pixel, from pairs of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caffe_dns import log
from caffe_dns.data.datum import Image, channels_first
from caffe_dns.data.image_files import read_image, read_words
from caffe_dns.data.random_resizing import refuse_resizing
from caffe_dns.data.transform import Transform
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Shape, layer_types
from caffe_dns.layers.checks import check_sides
from caffe_dns.layers.forks.labelled_images import LabelledImageLayer
from caffe_dns.proto.caffe_pb2 import DenseImageDataParameter

_FIELD = "dense_image_data_param"


@dataclass(frozen=True)
class PairReader:
    """Reads one image and its labels, cropped and mirrored alike, as the settings say."""

    pairs: Sequence[tuple[str, str]]
    settings: DenseImageDataParameter

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int, draw: Sequence[int]) -> tuple[Image, ...]:
        """The pair at `index` of the list as [C, H, W] and [1, H, W]; `draw` has three numbers.

        Raises CaffeError for files that cannot be read and for labels of another size.
        """
        settings, factor = self.settings, self.settings.label_divide_factor
        names = [settings.root_folder + name for name in self.pairs[index]]
        height, width = settings.new_height, settings.new_width
        image = read_image(names[0], height, width, color=settings.is_color)
        labels = read_image(names[1], height // factor, width // factor, color=False, nearest=True)
        wanted = (image.shape[0] // factor, image.shape[1] // factor)
        if labels.shape != wanted:
            raise CaffeError(
                f"has {labels.shape[0]} x {labels.shape[1]} labels; {wanted[0]} x {wanted[1]} "
                f"would be right for {names[0]}",
                file=names[1],
            )
        if settings.mirror and draw[0] & 1:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if settings.crop_height:
            image, labels = (self._crop(each, draw, names[0]) for each in (image, labels))
        return channels_first(image), labels[None]

    def _crop(self, image: Image, draw: Sequence[int], name: str) -> Image:
        height, width = self.settings.crop_height, self.settings.crop_width
        spare = image.shape[0] - height, image.shape[1] - width
        if min(spare) < 0:
            raise CaffeError(
                f"is {image.shape[0]} x {image.shape[1]}, smaller than the crop of {height} x "
                f"{width} (height, width)",
                file=name,
            )
        top, left = draw[1] % (spare[0] + 1), draw[2] % (spare[1] + 1)
        return image[top : top + height, left : left + width]


@layer_types.register("DenseImageData")
class DenseImageData(LabelledImageLayer):
    """Images and images of labels in the order of the list, or shuffled anew in each round.

    The list has the name of an image and that of its labels, and so on, with blanks or line ends
    between them. Tops N x C x H x W and N x 1 x H x W; mean and scale are those of
    `transform_param`, mirrors and crops those of `dense_image_data_param`, in both phases. Labels
    have `label_divide_factor` times fewer rows and columns (ENet).
    """

    tops = (2, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.settings
        self.batch_size = settings.batch_size
        self.check_batch_size(f"{_FIELD}.batch_size")
        self._check(settings)
        refuse_resizing(self.param.transform_param)
        self.transform = Transform(self.param.transform_param, self.param.phase)
        if self.transform.is_random or self.transform.crop_size:
            raise self.error(
                f"mirrors and crops are given in {_FIELD}: mirror, crop_height and crop_width",
                "transform_param",
            )
        log.info(f"Opening file {settings.source}")
        names = list(read_words(settings.source))
        pairs = list(zip(names[::2], names[1::2], strict=False))
        if not pairs:
            raise CaffeError("lists no pair of an image and its labels", file=settings.source)
        if settings.shuffle:
            log.info("Shuffling data")
        log.info(f"A total of {len(pairs)} examples.")
        if settings.rand_skip:
            log.info(f"Skipping first {self.draw_skip(settings.rand_skip)} data points.")
        self.images = PairReader(pairs, settings)
        self.size_by(self.read_first())

    @property
    def settings(self) -> DenseImageDataParameter:
        return self.param.dense_image_data_param

    def _check(self, settings: DenseImageDataParameter) -> None:
        if not settings.source:
            raise self.error("must name a list of images", f"{_FIELD}.source")
        for name in ("new", "crop"):
            check_sides(self, _FIELD, name)
        if settings.HasField("mean_file"):
            raise self.error(
                "is not read in the fork; give it in transform_param", f"{_FIELD}.mean_file"
            )
        if settings.label_divide_factor < 1:
            raise self.error("must be at least 1", f"{_FIELD}.label_divide_factor")
        if settings.label_divide_factor > 1 and settings.crop_height:
            raise self.error(
                "cannot be combined with a crop, which labels have at the same place",
                f"{_FIELD}.label_divide_factor",
            )
