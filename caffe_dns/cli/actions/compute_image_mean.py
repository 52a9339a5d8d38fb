"""`dns compute_image_mean` (tools/compute_image_mean.cpp)."""

from __future__ import annotations

from caffe_dns import log
from caffe_dns.cli.progress import Progress
from caffe_dns.data.db import open_database
from caffe_dns.data.image_mean import image_mean, mean_to_blob, mean_values
from caffe_dns.files import check_target
from caffe_dns.proto.text import write_binary


def run(input_db: str, output_file: str | None, backend: str) -> None:
    """Do what `dns compute_image_mean` is asked for, by the values of its flags."""
    if output_file:
        check_target(output_file)
    with (
        open_database(input_db, backend) as database,
        Progress("Summing", database.entries()) as progress,
    ):
        mean = image_mean(database, progress.advance)
    if output_file:
        log.info(f"Write to {output_file}")
        write_binary(output_file, mean_to_blob(mean))
    log.info(f"Number of channels: {mean.shape[0]}")
    for channel, value in enumerate(mean_values(mean)):
        log.info(f"mean_value channel [{channel}]: {log.number(value)}")
