"""Clips of videos that a list names: some consecutive frames, and a label."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from caffe_dns.data.datum import Image
from caffe_dns.data.image_files import read_image, read_lines, resized, whole_number
from caffe_dns.data.sources import ImageSource, Order
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError, shortened


@dataclass(frozen=True, slots=True)
class Clip:
    """A line of a list: a file or a folder, a number of a frame or of frames, and a label."""

    name: str
    number: int
    label: int


def read_clips(path: str, *, numbered: bool = True) -> list[Clip]:
    """The lines `NAME NUMBER LABEL` of a list, or `NAME LABEL` where they are not `numbered`.

    Raises CaffeError for a list that cannot be read, is empty, or has another line.
    """
    clips = []
    for number, line in enumerate(read_lines(path), 1):
        words = line.rsplit(None, 2 if numbered else 1)  # names may have blanks in them
        if not words:
            continue
        try:
            name, *numbers = words
            start, label = map(whole_number, numbers if numbered else ["0", *numbers])
        except ValueError:
            right = "NAME FRAME LABEL" if numbered else "NAME LABEL"
            what = f"is no line {right}: {shortened(line)}"
            raise CaffeError(what, file=path, line=number) from None
        clips.append(Clip(name, start, label))
    if not clips:
        raise CaffeError("lists no clips", file=path)
    return clips


@dataclass(frozen=True)
class ClipSettings:
    """How clips are read: so many frames, one of every `rate`, resized where sides are given."""

    length: int
    rate: int = 1
    height: int = 0
    width: int = 0
    color: bool = True
    root_folder: str = ""
    #: The names of the frames in a folder, by their numbers; None for files with videos.
    pattern: str | None = None
    #: The frame of a video with which a clip begins, less the number in the list.
    offset: int = 0
    #: Whether a clip begins anywhere, rather than where the list says.
    jitters: bool = False


class ClipSource(ImageSource[tuple[Clip, int]]):
    """The clips of a list, over and over; each as an image with the planes of all frames.

    Planes are in the order of channel and frame. `draws` makes the generator of a record, which
    says where a clip begins that may begin anywhere.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        order: Order,
        settings: ClipSettings,
        skip: int,
        draws: Callable[[int], np.random.Generator],
    ) -> None:
        self._clips = clips
        self._order = order
        self._settings = settings
        self._skip = skip
        self._draws = draws

    def fetch(self, record: int) -> tuple[Clip, int]:
        drawn = int(self._draws(record).integers(1 << 32)) if self._settings.jitters else 0
        return self._clips[self._order.index(record + self._skip)], drawn

    def decode(self, item: tuple[Clip, int]) -> tuple[Image, int]:
        clip, drawn = item
        path = self._settings.root_folder + clip.name
        frames = stacked(list(self._frames(path, clip, drawn)), path)
        if frames.ndim == 3:
            frames = frames[..., None]
        return frames.transpose(3, 0, 1, 2).reshape(-1, *frames.shape[1:3]), clip.label

    def is_encoded(self, item: tuple[Clip, int]) -> bool:
        return True

    def explain(self, error: CaffeError, record: int) -> CaffeError:
        return error.locate(file=self._settings.root_folder + self.fetch(record)[0].name)

    def _frames(self, path: str, clip: Clip, drawn: int) -> Iterator[Image]:
        settings = self._settings
        if settings.pattern is None or os.path.isfile(on_disk(path)):
            yield from _video(path, settings, None if settings.jitters else clip.number, drawn)
            return
        start = clip.number
        if settings.jitters:
            # Frames are numbered from 1 on, and the list says how many there are.
            start = 1 + drawn % _places(path, clip.number, settings)
        for number in range(start, start + settings.length * settings.rate, settings.rate):
            name = f"{path}/{settings.pattern % number}"
            yield read_image(name, settings.height, settings.width, color=settings.color)


def stacked(frames: Sequence[Image], name: str) -> Image:
    """The frames of a video, along a new first axis. Raises CaffeError where their sizes differ."""
    if len({frame.shape for frame in frames}) > 1:
        raise CaffeError("has frames of several sizes", file=name)
    return np.stack(frames)


def _places(path: str, frames: int, settings: ClipSettings) -> int:
    """In how many places a clip may begin. Raises CaffeError for a video that is too short."""
    places = frames - settings.length * settings.rate + 1
    if places < 1:
        raise CaffeError(
            f"has {frames} frames, a clip needs {settings.length * settings.rate}", file=path
        )
    return places


def _video(path: str, settings: ClipSettings, number: int | None, drawn: int) -> Iterator[Image]:
    """The frames of a file from frame `number`, or from where `drawn` says."""
    import cv2  # here, because importing it takes long and most runs do not need it

    if not os.path.isfile(on_disk(path)):
        raise CaffeError("is no file that can be read", file=path)
    video = cv2.VideoCapture(on_disk(path))
    try:
        if not video.isOpened():
            raise CaffeError("is no video that can be decoded", file=path)
        places = _places(path, int(video.get(cv2.CAP_PROP_FRAME_COUNT)), settings)
        first = drawn % places if number is None else max(number + settings.offset, 0)
        if first >= places:
            what = f"has no {settings.length * settings.rate} frames from frame {first} on"
            raise CaffeError(what, file=path)
        video.set(cv2.CAP_PROP_POS_FRAMES, first)
        for index in range(settings.length * settings.rate - settings.rate + 1):
            found, frame = video.read()
            if not found:
                raise CaffeError(f"frame {first + index} cannot be decoded", file=path)
            if index % settings.rate == 0:
                yield _as_wanted(frame, settings)
    finally:
        video.release()


def _as_wanted(frame: Image, settings: ClipSettings) -> Image:
    import cv2

    if not settings.color:
        frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    return resized(frame, settings.height, settings.width)
