"""`dns convert_imageset` (tools/convert_imageset.cpp)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from caffe_dns import log
from caffe_dns.cli.progress import Progress
from caffe_dns.data.database import Writer
from caffe_dns.data.db import create_database
from caffe_dns.data.image_files import missing_slash
from caffe_dns.data.image_list import ImageList, ListedImage
from caffe_dns.data.image_set import ImageSet
from caffe_dns.errors import CaffeError

#: Records in one transaction, and between two lines of the log.
_COMMIT_EVERY = 1000


def run(
    rootfolder: str,
    listfile: str,
    db_name: str,
    gray: bool,
    shuffle: bool,
    backend: str,
    resize_width: int,
    resize_height: int,
    check_size: bool,
    encoded: bool,
    encode_type: str,
) -> None:
    """Do what `dns convert_imageset` is asked for, by the values of its flags."""
    images = ImageList(listfile, empty_lines=True)
    arrange(images.starts, shuffle, encoded, encode_type)
    image_set = make_image_set(
        images, rootfolder, gray, resize_width, resize_height, encoded, encode_type
    )
    write_database(image_set, db_name, backend, check_size, listfile)


def arrange(images: Any, shuffle: bool, encoded: bool, encode_type: str) -> None:
    """Put an array or a list into the order that the flags ask for, and log what they mean."""
    if shuffle:
        log.info("Shuffling data")
        random.shuffle(images)
    log.info(f"A total of {len(images)} images.")
    if encode_type and not encoded:
        log.info("encode_type specified, assuming encoded=true.")


def make_image_set(
    images: Sequence[ListedImage],
    rootfolder: str,
    gray: bool,
    resize_width: int,
    resize_height: int,
    encoded: bool,
    encode_type: str,
    **more: Any,
) -> ImageSet:
    """The set that the flags ask for, and whatever else is set of it."""
    if (resize_height > 0) != (resize_width > 0):
        log.warning("-resize_height and -resize_width resize together only; no image is resized")
    return ImageSet(
        images,
        root_folder=rootfolder,
        height=max(0, resize_height),
        width=max(0, resize_width),
        color=not gray,
        encoded=encoded,
        encoding=encode_type,
        **more,
    )


def write_database(
    image_set: ImageSet, db_name: str, backend: str, check_size: bool, listfile: str
) -> None:
    """Make a database of all images that can be read. Raises CaffeError where there is none."""
    with create_database(db_name, backend) as writer:
        if not _write_records(image_set, writer, check_size):
            why = missing_slash(image_set.root_folder, image_set.images[0].name)
            raise CaffeError(f"none of the images listed can be read{why}", file=listfile)


def _write_records(image_set: ImageSet, writer: Writer, check_size: bool) -> int:
    """Write the records of all images that can be read, and return how many these are."""
    done = 0
    size: int | None = None
    with Progress("Converting", len(image_set.images)) as progress:
        for position, record in enumerate(image_set.records(), 1):
            progress.advance(position)
            if record is None:
                continue
            if check_size and record.num_values != (size or record.num_values):
                name = image_set.images[position - 1].name
                raise CaffeError(
                    f"Incorrect data field size {record.num_values}: "
                    f"the images before have {size} values",
                    file=image_set.root_folder + name,
                )
            size = record.num_values
            writer.put(record.key, record.value)
            done += 1
            if done % _COMMIT_EVERY == 0:
                writer.commit()
                log.info(f"Processed {done} files.")
        if done % _COMMIT_EVERY:
            writer.commit()
            log.info(f"Processed {done} files.")
    return done
