"""`dns detect` (python/detect.py)."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from caffe_dns.cli.images import numbers, permit, read_mean, use_device
from caffe_dns.data.image_files import read_lines
from caffe_dns.encoding import encode
from caffe_dns.errors import CaffeError
from caffe_dns.files import check_target, write_atomically
from caffe_dns.pycaffe.detector import Detection, Detector

_COORDINATES = ("ymin", "xmin", "ymax", "xmax")


def run(
    input_file: str,
    output_file: str,
    model_def: str,
    pretrained_model: str,
    gpu: bool,
    mean_file: str,
    input_scale: float | None,
    raw_scale: float,
    channel_swap: str,
    allow_python_layers: bool,
    crop_mode: str,
    context_pad: int,
) -> None:
    """Do what `dns detect` is asked for, by the values of its flags."""
    check_target(output_file, [input_file, pretrained_model, mean_file])
    as_csv = output_file.lower().endswith(".csv")
    if not as_csv:
        _pandas(output_file)
    rows = _read(input_file, with_windows=crop_mode == "list")
    mean = read_mean(mean_file)
    if mean is not None and mean.ndim == 3:
        mean = mean.mean((1, 2))
    permit(allow_python_layers)
    use_device(gpu)
    detector = Detector(
        model_def,
        pretrained_model,
        mean=mean,
        input_scale=input_scale,
        raw_scale=raw_scale,
        channel_swap=numbers("channel_swap", channel_swap),
        context_pad=context_pad,
    )
    start = time.perf_counter()
    click.echo("Loading input...")
    if crop_mode == "list":
        detections = detector.detect_windows(rows.items())
    else:
        detections = detector.detect_selective_search(rows)
    seconds = time.perf_counter() - start
    click.echo(f"Processed {len(detections)} windows in {seconds:.3f} s.")
    start = time.perf_counter()
    if as_csv:
        write_atomically(output_file, _to_csv(detections))
    else:
        _save_hdf5(detections, output_file)
    click.echo(f"Saved to {output_file} in {time.perf_counter() - start:.3f} s.")


def _read(path: str, with_windows: bool) -> dict[str, list[np.ndarray]]:
    """The windows (ymin, xmin, ymax, xmax) of each image, in the file's order of images."""
    ending = Path(path).suffix.lower()
    if ending not in (".txt", ".csv") or (with_windows and ending == ".txt"):
        wanted = "end in .csv" if with_windows else "end in .txt or .csv"
        raise CaffeError(f"the name must {wanted} to say what is in it", file=path)
    lines = read_lines(path)
    if ending == ".txt":
        return {line.strip(): [] for line in lines if line.strip()}
    rows = csv.DictReader(lines, skipinitialspace=True)
    try:
        return _read_windows(rows, with_windows)
    except CaffeError as error:
        raise error.locate(file=path) from None
    except csv.Error as error:
        line = rows.reader.line_num
        raise CaffeError(f"is not CSV: {error}", file=path, line=line) from None


def _read_windows(rows: csv.DictReader[str], with_windows: bool) -> dict[str, list[np.ndarray]]:
    columns = ("filename", *_COORDINATES) if with_windows else ("filename",)
    missing = [name for name in columns if name not in (rows.fieldnames or ())]
    if missing:
        raise CaffeError(f"has no column '{missing[0]}' in its first line")
    windows: dict[str, list[np.ndarray]] = {}
    for row in rows:
        if not row["filename"]:
            raise CaffeError("names no image", line=rows.line_num)
        found = windows.setdefault(row["filename"], [])
        if with_windows:
            try:
                window = [int(float(row[name])) for name in _COORDINATES]
                found.append(np.array(window, np.int32))
            except (TypeError, ValueError, OverflowError):
                raise CaffeError("a window needs four numbers", line=rows.line_num) from None
    return windows


def _to_csv(detections: list[Detection]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    classes = detections[0]["prediction"].size if detections else 0
    names = [f"class{number}" for number in range(classes)]
    writer.writerow(["filename", *_COORDINATES, *names])
    for detection in detections:
        scores = [f"{score:.9g}" for score in detection["prediction"].ravel()]
        writer.writerow([detection["filename"], *detection["window"], *scores])
    return encode(text.getvalue())


def _pandas(path: str) -> Any:
    try:
        import pandas
        import tables  # noqa: F401 (which pandas writes HDF5 with)
    except ImportError:
        raise CaffeError(
            "needs the packages pandas and tables; a name that ends in .csv does not", file=path
        ) from None
    return pandas


def _save_hdf5(detections: list[Detection], path: str) -> None:
    """A table as BVLC's detect.py writes it: the key is df, the index the file's name."""
    frame = _pandas(path).DataFrame(
        [
            {
                "filename": detection["filename"],
                "prediction": detection["prediction"],
                **dict(zip(_COORDINATES, detection["window"], strict=True)),
            }
            for detection in detections
        ]
    )
    frame.set_index("filename").to_hdf(path, key="df", mode="w")
