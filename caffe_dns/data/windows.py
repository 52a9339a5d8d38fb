"""Window files: images with labelled boxes, of which some are foreground and some background.

Reads the format of `window_data_layer.cpp`; what is done with the windows is not known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from caffe_dns import log
from caffe_dns.data.image_files import read_words
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError


@dataclass(frozen=True)
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
    words = read_words(path)
    try:
        for mark in words:
            if mark != "#":
                raise CaffeError(f"has '{mark}' where '#' and an image should stand")
            _read_image(words, windows, root_folder, fg_threshold, bg_threshold)
    except (StopIteration, ValueError):
        image = windows.images[-1] if windows.images else "the first image"
        raise CaffeError(f"breaks the format at or after {image}", file=path) from None
    except CaffeError as error:
        raise error.locate(file=path) from None
    if not windows.images:
        raise CaffeError("Window file is empty", file=path)
    for kind, found in (("foreground", windows.foreground), ("background", windows.background)):
        if not found:
            raise CaffeError(f"has no {kind} windows", file=path)
    _log_counts(windows)
    return windows


def _read_image(
    words: Iterator[str],
    windows: WindowFile,
    root_folder: str,
    fg_threshold: float,
    bg_threshold: float,
) -> None:
    """Read one image's index, path, size and windows."""
    index = int(next(words))
    if index != len(windows.images):
        raise CaffeError(f"has image {index} where image {len(windows.images)} should stand")
    path = on_disk(root_folder) + next(words)
    windows.images.append(path)
    windows.channels, height, width = [int(next(words)) for _ in range(3)]
    count = int(next(words))
    for _ in range(count):
        # Single precision as in Caffe: an overlap may be just the threshold.
        label, overlap = int(next(words)), np.float32(next(words))
        x1, y1, x2, y2 = [int(next(words)) for _ in range(4)]
        if overlap >= fg_threshold:
            if label <= 0:
                raise CaffeError(f"gives a foreground window of {path} the label {label}")
            windows.foreground.append(Window(index, label, x1, y1, x2, y2))
        elif overlap < bg_threshold:
            windows.background.append(Window(index, 0, x1, y1, x2, y2))
    if index % 100 == 0:
        log.info(
            f"num: {index} {path} {windows.channels} {height} {width} windows to process: {count}"
        )


def _log_counts(windows: WindowFile) -> None:
    log.info(f"Number of images: {len(windows.images)}")
    labels = Counter(window.label for window in windows.foreground)
    labels[0] = len(windows.background)
    for label in sorted(labels):
        log.info(f"class {label} has {labels[label]} samples")
