"""Constant data of the right shape in the place of a net's data layers.

What a data layer brings stands in its database, and so the shapes have to be found out from who
reads them: the sides of images mostly from the crop, labels from the scores that they are compared
with. Where nothing tells, usual ones are tried. Python layers, whose code is not to be run, are
taken for data layers, too: what they make has the shape that its readers want.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from torch import Tensor

from caffe_dns.errors import CaffeError, is_out_of_memory
from caffe_dns.layers import layer_types
from caffe_dns.layers.base import Context, Layer, Shape
from caffe_dns.net.definition import without_layers
from caffe_dns.proto.caffe_pb2 import (
    FillerParameter,
    LayerParameter,
    NetParameter,
    VideoDataParameter,
)
from caffe_dns.proto.fields import is_repeated

#: Channels, height and width that are tried where a definition does not tell them.
IMAGES: tuple[Shape, ...] = (
    (3, 224, 224),
    (1, 28, 28),
    (3, 32, 32),
    (1, 64, 64),
    (6, 224, 224),
    (3, 360, 480),
    (3, 321, 321),
    (3, 473, 473),
)
BATCH = 2
#: Rows that stand for regions of an image, and their columns: image, left, top, right, bottom.
_REGIONS: Shape = (2, 5)
#: Boxes that are to be found, in SSD's order: 8 numbers each.
_BOXES: Shape = (1, 1, 2, 8)
#: The same in MS-CNN's order: image, corners in pixels, class, and whether it is ignored.
_OBJECTS: Shape = (2, 7)
#: The same in MobileNet-YOLO's order: an image each, class, centre and sides.
_CENTRED: Shape = (BATCH, 1, 1, 5)
_ROWS = {
    _BOXES: [[0, 1, 0, 0.1, 0.1, 0.5, 0.6, 0], [0, 1, 1, 0.4, 0.3, 0.9, 0.8, 0]],
    _CENTRED: [[1, 0.3, 0.4, 0.4, 0.5], [1, 0.6, 0.5, 0.5, 0.5]],
    _OBJECTS: [[0, 20, 20, 110, 130, 1, 0], [0, 90, 70, 200, 180, 1, 0]],
}
#: Layers that compare their first bottom with a class for each place.
_CLASSES = {
    "SoftmaxWithLoss": "softmax_param",
    "SoftmaxWithLossOHEM": "softmax_param",
    "InfogainLoss": "infogain_loss_param",
    "Accuracy": "accuracy_param",
    "MultinomialLogisticLoss": None,
    "HingeLoss": None,
}
#: Layer types with a bottom, by its place, of a shape of their own.
_OF_THEIR_OWN: dict[tuple[str, int], Shape] = {
    ("ROIPooling", 1): _REGIONS,
    ("PSROIPooling", 1): _REGIONS,
    ("ROIAlign", 1): _REGIONS,
    ("ROIWarping", 1): _REGIONS,
    ("MultiBoxLoss", 3): _BOXES,
    ("DetectionOutput", 3): _BOXES,
    ("DetectionEvaluate", 1): _BOXES,
    ("RegionLoss", 1): _BOXES,
    ("EvalDetection", 1): _BOXES,
    ("Yolov3", 1): _CENTRED,
    ("LabelSpecificAdd", 1): (BATCH,),
    ("ProposalTarget", 1): _OBJECTS,
    ("ContrastiveLoss", 2): (BATCH,),
    ("ContrastiveLoss", 3): (BATCH,),
    ("TripletLoss", 3): (BATCH,),
    ("MarginInnerProduct", 1): (BATCH,),
    ("LargeMarginInnerProduct", 1): (BATCH,),
    ("CenterLoss", 1): (BATCH,),
    ("Proposal", 2): (1, 4),
    ("Silence", 0): (BATCH,),
}
#: Layers that make smaller or larger images, of labels, too.
_OF_IMAGES = {"Interp", "Pooling", "Crop"}
_NOWHERE = torch.device("meta")
_SOURCES = {"Input", "DummyData", "MemoryData"}


@dataclass(frozen=True)
class Guess:
    """What is taken for granted of the data."""

    batch: int
    image: Shape


def guesses(param: NetParameter) -> Iterator[Guess]:
    """What to try: small batches first, then those that the definition, of all phases, has."""
    given = sorted({size for layer in param.layer for size in _batches(layer)} - {0, 1})
    images = [image for layer in param.layer for image in _images(layer)]
    # Intel Caffe's BatchNorm divides the batch into parts of this size.
    least = param.bn_stats_batch_size or BATCH
    for batch in dict.fromkeys([least, 1, *given[:2], *given[-1:]]):
        for image in dict.fromkeys([*images, *IMAGES]):
            yield Guess(batch, image)


def _batches(layer: LayerParameter) -> Iterator[int]:
    """Numbers of items that a layer brings or wants; 0 and 1, the fields' defaults, too."""
    for settings in (layer.data_param, layer.image_data_param, layer.hdf5_data_param):
        yield settings.batch_size
    yield layer.memory_data_param.batch_size
    yield layer.continuation_indicator_param.batch_size
    for shape in (*layer.input_param.shape, *layer.dummy_data_param.shape):
        yield from shape.dim[:1]
    dims = layer.reshape_param.shape.dim
    if dims and min(dims) > 0:  # times and streams, of a vector each
        yield math.prod(dims[:-1])


def _images(layer: LayerParameter) -> Iterator[Shape]:
    """Channels, height and width of the images that a layer brings, where it says so."""
    memory = layer.memory_data_param
    if layer.type == "MemoryData":
        yield memory.channels, memory.height, memory.width
    for shape in layer.input_param.shape:
        if len(shape.dim) == 4:
            channels, height, width = shape.dim[1:]
            yield channels, height, width


class NoGuess(CaffeError):
    """A layer does not fit the data that were made up; `depth` layers do."""

    def __init__(self, error: CaffeError, depth: int) -> None:
        super().__init__(
            error.message, file=error.file, line=error.line, layer=error.layer, field=error.field
        )
        self.depth = depth


def with_constant_data(param: NetParameter, guess: Guess) -> NetParameter:
    """A copy of a filtered definition in which DummyData layers bring all that comes from outside.

    Raises NoGuess where a layer does not take it.
    """
    blobs = _Blobs(param, guess)
    for depth, layer in enumerate(param.layer):
        try:
            blobs.append(layer)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise NoGuess(CaffeError("takes more than there is of memory"), depth) from None
            if not isinstance(error, CaffeError):
                raise
            raise NoGuess(error.locate(layer=layer.name), depth) from None
    result = without_layers(param)
    for layer in param.layer:
        if is_data(layer):
            result.layer.extend(_constant(top, blobs.of_data(top)) for top in layer.top)
        else:
            result.layer.add().CopyFrom(layer)
            _clear(result.layer[-1], _names_a_file)
    return result


def is_data(layer: LayerParameter) -> bool:
    """Whether it brings something from outside the net, or runs code of the user's."""
    if layer.type in ("Parameter", "ContinuationIndicator"):
        return False
    return layer.type == "Python" or not layer.bottom


@layer_types.register("TrialBoxes")
class TrialBoxes(Layer):
    """Boxes that are to be found in the first image, all of class 1."""

    bottoms = (0, 0)
    is_source = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.shape = tuple(self.param.dummy_data_param.shape[0].dim)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [self.shape]

    def forward(self, *bottoms: Tensor) -> Tensor:
        rows = torch.tensor(_ROWS[self.shape], dtype=torch.float32, device=self.context.device)
        return rows.view(self.shape)


def _constant(top: str, shape: Shape) -> LayerParameter:
    kind = "TrialBoxes" if shape in _ROWS else "DummyData"
    layer = LayerParameter(name=f"constant {top}", type=kind, top=[top])
    layer.dummy_data_param.shape.add(dim=shape)
    value = 0.5 if len(shape) == 4 and "label" not in top else 0.0
    layer.dummy_data_param.data_filler.append(FillerParameter(type="constant", value=value))
    return layer


class _Blobs:
    """The shapes of a net's blobs, layer by layer; those of data may wait for their reader."""

    def __init__(self, param: NetParameter, guess: Guess) -> None:
        self._param = param
        self._guess = guess
        self._shapes: dict[str, Shape] = {}
        self._data: dict[str, Shape | None] = {}
        self._regions = _regions(param)

    def of_data(self, top: str) -> Shape:
        """What a data layer has to bring; one number for each item where nobody asks."""
        return self._data[top] or (self._guess.batch,)

    def append(self, layer: LayerParameter) -> None:
        """Find out the shapes of a layer's tops. Raises CaffeError."""
        if is_data(layer):
            shapes = list(self._brought(layer))
            for top, shape in zip(layer.top, shapes, strict=True):
                self._data[top] = shape
                self._shapes.pop(top, None)
                if shape is not None:
                    self._shapes[top] = shape
            return
        for index, blob in enumerate(layer.bottom):
            if blob not in self._shapes and blob in self._data:
                self._data[blob] = self._shapes[blob] = self._wanted(layer, index)
        bottoms = [self._shapes[blob] for blob in layer.bottom if blob in self._shapes]
        if len(bottoms) < len(layer.bottom):
            return  # an unknown bottom, of which building the net complains
        plain = LayerParameter()
        plain.CopyFrom(layer)
        plain.phase = self._param.state.phase
        _clear(plain, _is_filler)
        _clear(plain, _names_a_file)
        with _NOWHERE:  # large blobs without their memory
            made = layer_types[layer.type](plain, Context(_NOWHERE, surgery=False)).setup(bottoms)
        self._shapes.update(zip(layer.top, map(tuple, made), strict=False))

    def _brought(self, layer: LayerParameter) -> Iterator[Shape | None]:
        for index, top in enumerate(layer.top):
            if layer.type in _SOURCES:
                yield self._given(layer, index)
            elif index == 0 and layer.type not in ("HDF5Data", "Python"):
                yield self._image(layer)
            elif index == 1 and layer.type in ("ImageSegData", "ImageLabelmapData"):
                image = self._image(layer)
                yield (image[0], 1, *image[2:])
            elif layer.type == "Python" and top in ("data", "image"):
                # Detectors take one at a time.
                yield (self._guess.batch if self._guess.batch > BATCH else 1, *self._guess.image)
            else:
                yield None

    def _given(self, layer: LayerParameter, index: int) -> Shape | None:
        """The shape that the definition gives, with a small batch."""
        if layer.type == "MemoryData":
            memory = layer.memory_data_param
            return (self._guess.batch, memory.channels, memory.height, memory.width)[
                : 4 - 3 * index
            ]
        plain = LayerParameter()
        plain.CopyFrom(layer)
        shape = tuple(layer_types[layer.type](plain, Context()).setup([])[index])
        if shape[:2] + shape[3:] == (1, 1, 8):
            return _BOXES
        return (min(shape[0], self._guess.batch), *shape[1:]) if shape else None

    def _image(self, layer: LayerParameter) -> Shape:
        channels, height, width = self._guess.image
        transform, listed = layer.transform_param, layer.image_data_param
        if listed.new_height:
            height, width = listed.new_height, listed.new_width
        if layer.video_data_param.new_height:
            height, width = layer.video_data_param.new_height, layer.video_data_param.new_width
        if layer.image_data_param.HasField("is_color") and not listed.is_color:
            channels = 1
        if "resize_param" in transform.DESCRIPTOR.fields_by_name:
            for resize in transform.resize_param[:1]:
                height, width = resize.height or height, resize.width or width
        if transform.crop_size:
            height = width = transform.crop_size
        readers = [each for each in self._param.layer if layer.top[0] in each.bottom]
        if readers and readers[0].type == "Slice" and _slice_axis(readers[0]) == 1:
            channels = self._for_slice(readers[0])[1]
        video = layer.video_data_param
        if layer.type == "VideoSegments":
            planes = 2 if video.modality == VideoDataParameter.FLOW else channels
            channels = planes * video.new_length * video.num_segments
        if layer.type == "VideoData":
            frames = video.new_length if layer.HasField("video_data_param") else listed.new_length
            return (self._guess.batch, channels, frames, height, width)
        return (self._guess.batch, channels, height, width)

    def _wanted(self, layer: LayerParameter, index: int) -> Shape:
        """The shape of bottom `index`, which comes from data, by who reads it."""
        first = self._shapes.get(layer.bottom[0])
        own = _OF_THEIR_OWN.get((layer.type, index))
        if layer.type == "RegionLoss" and index == 1 and self._tells_centres(layer.bottom[1]):
            return _CENTRED
        if own is not None:
            return own if own != _REGIONS else self._regions
        if layer.type in _CLASSES and index > 0 and first:
            settings = _CLASSES[layer.type]
            axis = getattr(layer, settings).axis if settings else 1
            if layer.type == "SoftmaxWithLossOHEM":
                # Its third top has the labels' shape, and is added to one that has four axes.
                return (*first[:axis], 1, *first[axis + 1 :], 1, 1, 1)[:4]
            return _without_axis(first, axis)
        if layer.type in ("DetectionLoss", "DetectionAccuracy") and index == 1 and first:
            return (first[0], 6, *first[2:])
        if layer.type == "MaskPooling" and index == 1 and first:
            return (first[0], 1, *first[2:])
        if layer.type in ("LSTM", "ConvLSTM") and index == 1 and first:
            return first[:2]
        if layer.type in ("CtcLoss", "WarpCTCLoss", "CTCGreedyDecoder") and index == 1 and first:
            return (first[1], 2)
        if layer.type == "LabelsequenceAccuracy" and index == 1 and first:
            return (first[0], 2)
        if layer.type == "Lstm" and index == 1 and first:
            return first[:1]
        if layer.type == "Slice" and first is None:
            return self._for_slice(layer)
        if layer.type == "Eltwise" and first is None:
            first = next((self._shapes[b] for b in layer.bottom if b in self._shapes), None)
        if first is not None:
            return first
        if "rois" in layer.bottom[index]:
            return self._regions
        if "label" in layer.bottom[index] and layer.type in _OF_IMAGES:
            return (self._guess.batch, 1, *self._guess.image[1:])
        if any(word in layer.bottom[index] for word in ("label", "clip", "cont", "target")):
            return (self._guess.batch,)
        return (self._guess.batch, *self._guess.image)

    def _tells_centres(self, blob: str) -> bool:
        """Whether a blob has objects in MobileNet-YOLO's order, not in SSD's."""
        makers = [each for each in self._param.layer if blob in each.top]
        return any(each.annotated_data_param.yolo_data_type == 1 for each in makers)

    def _for_slice(self, layer: LayerParameter) -> Shape:
        """A bottom whose last piece is as long as the one before, or one number of a label."""
        points = [0, *layer.slice_param.slice_point]
        extent = 2 * points[-1] - points[-2] if len(points) > 1 else len(layer.top)
        if "label" in layer.bottom[0] and _slice_axis(layer) == 0:
            return (extent,)
        if "label" in layer.bottom[0]:
            return (self._guess.batch, points[-1] + 1 if len(points) > 1 else extent)
        shape = [self._guess.batch, *self._guess.image]
        shape[_slice_axis(layer)] = extent
        return tuple(shape)


def _regions(param: NetParameter) -> Shape:
    """Regions of images; more than usual where they are sliced, such as those of objects."""
    slices = [layer for layer in param.layer if layer.type == "Slice" and _slice_axis(layer) == 0]
    points = [point for layer in slices for point in layer.slice_param.slice_point]
    return (max([_REGIONS[0], *(2 * point for point in points)]), *_REGIONS[1:])


def _slice_axis(layer: LayerParameter) -> int:
    settings = layer.slice_param
    return settings.slice_dim if settings.HasField("slice_dim") else settings.axis


def _without_axis(shape: Shape, axis: int) -> Shape:
    axis %= len(shape)
    return (*shape[:axis], *shape[axis + 1 :]) or (1,)


def _is_filler(field: FieldDescriptor) -> bool:
    """Shapes are asked for, not first values, which take long to draw."""
    return field.message_type is not None and field.message_type.name == "FillerParameter"


def _names_a_file(field: FieldDescriptor) -> bool:
    """Lists of names and sizes of images and the like, which are data as well."""
    return field.name.endswith("_file")


def _clear(message: Message, unwanted: Callable[[FieldDescriptor], bool]) -> None:
    """Take such fields out of a message and those in it, of which there is one each."""
    for field, value in message.ListFields():
        if is_repeated(field):
            continue
        if unwanted(field):
            message.ClearField(field.name)
        elif field.message_type is not None:
            _clear(value, unwanted)
