"""`dns extract_features` (tools/extract_features.cpp).

Caffe's tool shows only lines of severity ERROR unless glog's flags ask for more, so it logs
everything at that severity. So does this.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch

from caffe_dns import load_net, log
from caffe_dns.cli.definitions import require_data
from caffe_dns.cli.progress import Progress
from caffe_dns.data.database import Writer
from caffe_dns.data.db import create_database
from caffe_dns.device.selection import CPU, scoring_device
from caffe_dns.errors import CaffeError
from caffe_dns.export.features import check_blobs, feature_datums
from caffe_dns.net import Net
from caffe_dns.weights import weight_files

#: Records in one transaction, and between two lines of the log.
_COMMIT_EVERY = 1000


def run(
    pretrained_net_param: str,
    feature_extraction_proto_file: str,
    blob_names: str,
    dataset_names: str,
    num_mini_batches: int,
    db_type: str,
    mode: str,
    device_id: int,
    no_surgery: bool,
    allow_python_layers: bool,
) -> None:
    """Do what `dns extract_features` is asked for, by the values of its flags."""
    blobs, datasets = _pairs(blob_names, dataset_names)
    if num_mini_batches < 1:
        raise CaffeError(f"num_mini_batches must be at least 1, not {num_mini_batches}")
    net = load_net(
        feature_extraction_proto_file,
        "TEST",
        weight_files(pretrained_net_param),
        not no_surgery,
        device=_device(mode, device_id),
        allow_python_layers=allow_python_layers,
        quiet=False,
    )
    try:
        require_data(net, feature_extraction_proto_file)
        check_blobs(net, blobs, feature_extraction_proto_file)
        with ExitStack() as stack:
            writers = []
            for dataset in datasets:
                log.info(f"Opening dataset {dataset}")
                writers.append(stack.enter_context(create_database(dataset, db_type)))
            _extract(net, dict(zip(blobs, writers, strict=True)), num_mini_batches)
    finally:
        net.close()
    log.error("Successfully extracted the features!")


def _pairs(blob_names: str, dataset_names: str) -> tuple[list[str], list[str]]:
    blobs, datasets = blob_names.split(","), dataset_names.split(",")
    if len(blobs) != len(datasets):
        raise CaffeError(
            "the number of blob names and dataset names must be equal: "
            f"there are {len(blobs)} and {len(datasets)}"
        )
    for kind, names in (("blob", blobs), ("dataset", datasets)):
        if len(set(names)) < len(names):
            raise CaffeError(f"a {kind} is named twice in '{','.join(names)}'")
    return blobs, datasets


def _device(mode: str, device_id: int) -> torch.device:
    if mode not in ("CPU", "GPU"):
        raise CaffeError(f"the mode is CPU or GPU, not '{mode}'")
    if mode == "CPU":
        log.error("Using CPU")
        return CPU
    log.error("Using GPU")
    log.error(f"Using Device_id={device_id}")
    return scoring_device(str(device_id))


@torch.no_grad()
def _extract(net: Net, writers: dict[str, Writer], num_mini_batches: int) -> None:
    """Run the batches, and write the records of each blob to its database."""
    log.error("Extracting Features")
    done = dict.fromkeys(writers, 0)
    with Progress("Extracting", num_mini_batches) as progress:
        for batch in range(1, num_mini_batches + 1):
            blobs = net()
            for name, writer in writers.items():
                for datum in feature_datums(blobs[name]):
                    writer.put(f"{done[name]:010d}".encode(), datum.SerializeToString())
                    done[name] += 1
                    if done[name] % _COMMIT_EVERY == 0:
                        writer.commit()
                        _report(name, done[name])
            progress.advance(batch)
    for name, writer in writers.items():
        writer.commit()
        _report(name, done[name])


def _report(blob: str, done: int) -> None:
    log.error(f"Extracted features of {done} query images for feature blob {blob}")
