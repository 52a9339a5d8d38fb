"""VideoData of C3D and video-caffe: clips of videos, from files or from folders of frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from caffe_dns import log, rng
from caffe_dns.data.batches import ImageBatches, Share
from caffe_dns.data.clips import ClipSettings, ClipSource, read_clips
from caffe_dns.data.random_resizing import refuse_resizing
from caffe_dns.data.sources import Order
from caffe_dns.layers import image_data
from caffe_dns.layers.base import Shape, layer_types
from caffe_dns.layers.batch_data import ImageBatchLayer
from caffe_dns.layers.checks import check_positive, check_sides
from caffe_dns.proto.caffe_pb2 import TRAIN, TransformationParameter

#: Frames in folders, of C3D and of video-caffe, and with what frame of a file the latter begins.
_C3D_FRAMES, _FRAMES, _OFFSET = "%06d.jpg", "image_%04d.jpg", -2


@layer_types.register("VideoData")
class VideoData(ImageBatchLayer):
    """Clips N x C x L x H x W and labels N, in the order of the list or shuffled in each round.

    As `video_data_layer.cpp` of C3D where `use_image` is given or the settings are C3D 1.0's, else
    as video-caffe's. All frames of a clip are cropped and mirrored alike; values in `mean_value`
    are those of channels. The ranks share the clips as those of Data do.
    """

    tops = (1, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.field = "image_data_param"
        if self.param.HasField("video_data_param"):
            self.field = "video_data_param"
        self.options = getattr(self.param, self.field)
        self.batch_size = self.options.batch_size
        self.check_batch_size(f"{self.field}.batch_size")
        check_positive(self, self.field, ("new_length", "sampling_rate"))
        if not self.options.source:
            raise self.error("must name a list of clips", f"{self.field}.source")
        check_sides(self, self.field, "new")
        if self.field == "image_data_param":
            image_data.refuse_of_others(self.options, "VideoData")
        refuse_resizing(self.param.transform_param)
        self.reading = self._settings()
        log.info(f"Opening file {self.options.source}")
        numbered = self.reading.pattern is not None or not self.reading.jitters
        self._clips = read_clips(self.options.source, numbered=numbered)
        log.info(f"A total of {len(self._clips)} video chunks.")
        if self.draw_skip(self.options.rand_skip) >= len(self._clips):
            raise self.error("skips all clips", f"{self.field}.rand_skip")
        source = self.records()
        self.first_shape = source.decode(source.fetch(0))[0].shape
        super().build(bottom_shapes)

    def _settings(self) -> ClipSettings:
        options = self.options
        is_c3d = self.field == "image_data_param" or options.HasField("use_image")
        pattern: str | None = _C3D_FRAMES if is_c3d else _FRAMES
        if is_c3d and not options.use_image:
            pattern = None
        return ClipSettings(
            length=options.new_length,
            rate=options.sampling_rate,
            height=options.new_height,
            width=options.new_width,
            color=options.is_color,
            root_folder=options.root_folder,
            pattern=pattern,
            offset=0 if is_c3d else _OFFSET,
            jitters=options.use_temporal_jitter and self.param.phase == TRAIN,
        )

    def transform_settings(self) -> TransformationParameter:
        settings = TransformationParameter()
        settings.CopyFrom(self.param.transform_param)
        length = self.options.new_length
        if len(settings.mean_value) * length == self.first_shape[0]:
            settings.mean_value[:] = [each for each in settings.mean_value for _ in range(length)]
        return settings

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape, *labels = super().reshape(bottom_shapes)
        length = self.options.new_length
        return [(shape[0], shape[1] // length, length, *shape[2:]), *labels]

    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        tops = super().forward(*bottoms)
        return [top.view(shape) for top, shape in zip(tops, self.reshape([]), strict=True)]

    def reader(self, share: Share, *, pin: bool) -> ImageBatches:
        size = self.batch_size
        return ImageBatches(self.records(), self.transform, self.draws(), share, size, for_gpu=pin)

    def records(self) -> ClipSource:
        seed = self.context.seed if self.options.shuffle else None
        return ClipSource(
            self._clips,
            Order(len(self._clips), seed, f"shuffle/{self.name}"),
            self.reading,
            self.draw_skip(self.options.rand_skip),
            partial(rng.numpy_generator, self.context.seed, f"clips/{self.name}"),
        )
