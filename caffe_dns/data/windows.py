"""Window files: images with labelled boxes, some of them foreground and some background.

Reads the format of `window_data_layer.cpp`; what is done with the windows is not known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from caffe_dns import log
from caffe_dns.data.marked_lists import ImageHead, log_counts, next_number, read_marked_list
from caffe_dns.errors import CaffeError, shortened


@dataclass(frozen=True, slots=True)
class Window:
    """A box in an image, its corners included. Background has the label 0."""

    image: int
    label: int
    x1: int
    y1: int
    x2: int
    y2: int


@dataclass
class WindowFile:
    """The images, the number of channels they are said to have, and their windows by kind."""

    images: list[str] = field(default_factory=list)
    channels: int = 0
    foreground: list[Window] = field(default_factory=list)
    background: list[Window] = field(default_factory=list)


def read_window_file(
    path: str, root_folder: str, fg_threshold: float, bg_threshold: float
) -> WindowFile:
    """The windows that overlap an object by `fg_threshold`, or by less than `bg_threshold`.

    Raises CaffeError for a file that cannot be read or breaks the format.
    """
    windows = WindowFile()

    def take(head: ImageHead, words: Iterator[str]) -> None:
        _read_image(head, words, windows, fg_threshold, bg_threshold)

    read_marked_list(path, root_folder, take)
    for kind, found in (("foreground", windows.foreground), ("background", windows.background)):
        if not found:
            raise CaffeError(f"has no {kind} windows", file=path)
    samples = Counter(window.label for window in windows.foreground)
    samples[0] = len(windows.background)
    log_counts(len(windows.images), samples)
    return windows


def _read_image(
    head: ImageHead,
    words: Iterator[str],
    windows: WindowFile,
    fg_threshold: float,
    bg_threshold: float,
) -> None:
    """Read the windows of one image."""
    index = int(head.number)
    if index != len(windows.images):
        raise CaffeError(f"has image {index} where image {len(windows.images)} should stand")
    windows.images.append(head.path)
    windows.channels, height, width = head.shape
    count = next_number(words)
    for _ in range(count):
        # Single precision as in Caffe: an overlap may be just the threshold.
        label, overlap = next_number(words), np.float32(next(words))
        x1, y1, x2, y2 = [next_number(words) for _ in range(4)]
        if overlap >= fg_threshold:
            if label <= 0:
                what = f"gives a foreground window of {shortened(head.path)} the label {label}"
                raise CaffeError(what)
            windows.foreground.append(Window(index, label, x1, y1, x2, y2))
        elif overlap < bg_threshold:
            windows.background.append(Window(index, 0, x1, y1, x2, y2))
    if index % 100 == 0:
        log.info(
            f"num: {index} {head.path} {windows.channels} {height} {width} "
            f"windows to process: {count}"
        )
