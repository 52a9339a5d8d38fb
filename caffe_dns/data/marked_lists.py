"""Lists that describe each image after a line with a `#`, as for WindowData and ImageGtData.

For each image: `# NUMBER`, its path, channels, height and width; the layer types know what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from caffe_dns import log
from caffe_dns.data.image_files import read_lines, whole_number
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError, shortened

_T = TypeVar("_T")


@dataclass(frozen=True)
class ImageHead:
    """What begins an image: its number, as it stands there, path, and channels, height, width."""

    number: str
    path: str
    shape: tuple[int, int, int]


class _Words(Iterator[str]):
    """What stands in a list file between blanks and line ends, and on which line the last stood."""

    def __init__(self, path: str) -> None:
        self.line = 1
        self._words = self._read(read_lines(path))

    def __next__(self) -> str:
        return next(self._words)

    def _read(self, lines: Sequence[str]) -> Iterator[str]:
        for self.line, line in enumerate(lines, 1):
            yield from line.split()


def read_marked_list(
    path: str, root_folder: str, take: Callable[[ImageHead, Iterator[str]], _T]
) -> list[_T]:
    """What `take` makes of the images, each of its head and the words behind that.

    Raises CaffeError for a file that cannot be read or breaks the format, which `take` says by a
    StopIteration or ValueError.
    """
    found: list[_T] = []
    words = _Words(path)
    image = "the first image"
    try:
        for mark in words:
            if mark != "#":
                raise CaffeError(f"has '{shortened(mark)}' where '#' and an image should stand")
            number, image = next(words), on_disk(root_folder) + next(words)
            shape = next_number(words), next_number(words), next_number(words)
            found.append(take(ImageHead(number, image, shape), words))
    except (StopIteration, ValueError):
        raise CaffeError(
            f"breaks the format at or after {shortened(image)}", file=path, line=words.line
        ) from None
    except CaffeError as error:
        raise error.locate(file=path, line=words.line) from None
    if not found:
        raise CaffeError("Window file is empty", file=path)
    return found


def next_number(words: Iterator[str]) -> int:
    """The next word as a number of 32 bits. Raises StopIteration and ValueError."""
    return whole_number(next(words))


def log_counts(images: int, samples: Mapping[int, int]) -> None:
    """Log how many images there are, and how many samples of each class."""
    log.info(f"Number of images: {images}")
    for label in sorted(samples):
        log.info(f"class {label} has {samples[label]} samples")
