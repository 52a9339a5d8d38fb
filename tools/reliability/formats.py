"""Every kind of file that dns reads: a good one, how to damage it, and what reads it.

`build_formats` makes the good files in the current folder. What a reader returns is a complaint
about values that are not finite; whatever else is wrong it raises.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch

from caffe_dns import load_net
from caffe_dns.cli import definitions
from caffe_dns.data.annotation_files import READERS, read_groups, read_pairs
from caffe_dns.data.clips import read_clips
from caffe_dns.data.datum import parse_alike, parse_datum
from caffe_dns.data.db import open_database
from caffe_dns.data.image_mean import image_mean
from caffe_dns.data.label_map import read_label_map, read_names_and_sizes
from caffe_dns.data.object_files import read_object_file
from caffe_dns.data.transform import Transform
from caffe_dns.data.windows import read_window_file
from caffe_dns.errors import CaffeError
from caffe_dns.export import compact
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.sharing import share_values
from caffe_dns.layers.base import Context
from caffe_dns.net import Net
from caffe_dns.net.multiplications import uses_by_layer
from caffe_dns.proto.caffe_pb2 import (
    TEST,
    BlobProto,
    Datum,
    NetParameter,
    SolverState,
    TransformationParameter,
)
from caffe_dns.proto.text import parse_text
from caffe_dns.proto.upgrade import read_solver
from caffe_dns.reports.log_tables import parse_log
from caffe_dns.reports.run_log import read_run_log
from caffe_dns.solver.solver import Solver
from caffe_dns.weights import copy_trained_layers
from caffe_dns.weights.compact import shared
from caffe_dns.weights.compact.files import SIGNATURE
from tools.reliability import definitions_to_damage as texts
from tools.reliability.mutation import (
    Damage,
    damage_bytes,
    damage_fields,
    damage_lines,
    damage_message,
    damage_pages,
    damage_small_text,
    damage_text,
)

GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden"
#: Nets that multiply more often in a pass are built only.
MOST_MULTIPLICATIONS = 1 << 33
#: Reads a file; what is not finite in it, or None.
Reader = Callable[[str], "str | None"]


@dataclass
class Format:
    """A kind of file."""

    good: bytes
    #: The name that damaged ones get.
    file: str
    damage: Damage
    read: Reader
    #: Whether what it asks for in memory is up to the file: a definition may be of a large net.
    asks: bool = False


def build_formats(*, run_nets: bool = True) -> dict[str, Format]:
    """All formats by name; their files lie in the current folder, which is empty before.

    Without `run_nets`, the nets of damaged definitions are built only, and none is large.
    """
    for name in ("data", "tools"):
        shutil.copytree(GOLDEN / name, name)
    formats = {}
    damage = damage_text if run_nets else damage_small_text
    for name, (text, phase) in texts.NETS.items():
        read = net_reader(phase, run=run_nets)
        formats[name] = Format(text.encode(), f"{name}.prototxt", damage, read, asks=True)
    formats["net_layers"] = layer_format(run=run_nets)
    formats |= solver_formats(run=run_nets)
    formats |= database_formats()
    formats |= array_formats()
    images = sorted(Path().glob("tools/images/*"))
    listing = "".join(f"{path} {label}\n" for label, path in enumerate(images))
    formats["image_list"] = Format(listing.encode(), "list.txt", damage_text, read_list)
    return formats | listed_formats()


def use_net(net: Net, passes: int = 1) -> str | None:
    """Run a net forward and back; the first blob that is not finite."""
    try:
        feed = {name: torch.rand(net.blob_shapes[name]) for name in net.inputs}
        if "label" in feed:
            feed["label"].zero_()
        for _ in range(passes):
            blobs = net(feed) if feed else net()
            loss = net.loss(blobs)
            if loss.requires_grad:
                loss.backward()
        return not_finite(blobs.values())
    finally:
        net.close()


def not_finite(tensors: Iterable[torch.Tensor]) -> str | None:
    finite = all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())
    return None if finite else "values that are not finite"


def net_reader(phase: str, *, run: bool) -> Reader:
    def read(path: str) -> str | None:
        net = load_net(path, phase, quiet=True)
        multiplications = sum(
            layer.blobs[0].numel() * uses for layer, uses in uses_by_layer(net).items()
        )
        # How long a net computes is up to its definition, too.
        if run and multiplications < MOST_MULTIPLICATIONS:
            # Values that a definition makes infinite are its own; those of files are not.
            use_net(net)
        else:
            net.close()
        return None

    return read


def layer_format(*, run: bool) -> Format:
    """The nets of one layer each that Caffe has computed, of which one is damaged each time."""
    goods = [path.read_bytes() for path in sorted(GOLDEN.glob("layers/*/net.prototxt"))]

    def damage(good: bytes, draw: random.Random) -> bytes:
        return damage_fields(draw.choice(goods), draw, small=not run)

    return Format(goods[0], "net_layers.prototxt", damage, net_reader("TRAIN", run=run), asks=True)


def solver_formats(*, run: bool) -> dict[str, Format]:
    """A solver, and the models and states that it writes in both forms."""
    Path("train.prototxt").write_text(texts.NETS["net_train"][0])
    Path("guo.prototxt").write_text(texts.NETS["net_guo"][0])
    solvers = {}
    for name, text in texts.SOLVERS.items():
        Path(f"{name}.prototxt").write_text(text)
        solvers[name] = Solver(read_solver(f"{name}.prototxt").message)
        solvers[name].step(2)
        solvers[name].snapshot()

    def solve(path: str) -> str | None:
        solver = Solver(read_solver(path).message)
        try:
            if run:
                # For how long it trains is up to the definition, too.
                solver.param.iter_size = min(3, solver.param.iter_size)
                solver.step(min(2, max(0, solver.param.max_iter)))
            return None
        finally:
            solver.close()

    def restorer(solver: Solver) -> Reader:
        def restore(path: str) -> str | None:
            solver.restore(path)
            return not_finite(solver.net.parameters())

        return restore

    def copier(net: Net) -> Reader:
        def copy(path: str) -> str | None:
            copy_trained_layers(net, path)
            return not_finite(net.parameters())

        return copy

    binary, hdf5 = solvers["s"], solvers["h"]
    model, state = Path("s_iter_2.caffemodel"), Path("s_iter_2.solverstate")
    model_h5, state_h5 = Path("h_iter_2.caffemodel.h5"), Path("h_iter_2.solverstate.h5")
    in_message, in_state = (damage_message(t.DESCRIPTOR) for t in (NetParameter, SolverState))
    deployment = definitions.read_deployment("train.prototxt", 1, (), 0, "", False, Context())
    unmasked = UnmaskedModel.load(deployment, str(model), Context())
    small, smaller = compact.to_bytes(unmasked), compact.to_bytes(share_values(unmasked, 2))
    return {
        "solver": Format(texts.SOLVERS["s"].encode(), "solver.prototxt", damage_text, solve, True),
        "caffemodel": Format(model.read_bytes(), "m.caffemodel", in_message, copier(binary.net)),
        "caffemodel_h5": Format(
            model_h5.read_bytes(), "m.caffemodel.h5", damage_bytes(16384), copier(hdf5.net)
        ),
        "solverstate": Format(state.read_bytes(), "m.solverstate", in_state, restorer(binary)),
        "solverstate_h5": Format(
            state_h5.read_bytes(), "m.solverstate.h5", damage_bytes(8192), restorer(hdf5)
        ),
        "dnsz": Format(small, "m.dnsz", damage_signed, read_compact),
        "dnsz_shared": Format(smaller, "m_shared.dnsz", damage_signed, read_compact),
    }


def damage_signed(raw: bytes, draw: random.Random) -> bytes:
    """Damage to a compact file, mostly with a checksum that fits, as who means harm would do."""
    damaged = damage_bytes(600)(raw, draw)
    if draw.random() < 0.7 and len(damaged) > 40:
        if raw.startswith(SIGNATURE + bytes([shared.VERSION])):
            damaged = raw[:5] + zlib.crc32(damaged[9:]).to_bytes(4, "little") + damaged[9:]
        else:
            damaged = damaged[:8] + hashlib.sha256(damaged[40:]).digest() + damaged[40:]
    return damaged


def read_compact(path: str) -> str | None:
    arrays = [array for blobs in compact.load(path).blobs for array in blobs]
    return not_finite(torch.from_numpy(np.array(array)) for array in arrays)


def database_formats() -> dict[str, Format]:
    """Databases, each damaged in one of its files."""
    formats = {}
    for name, source, backend, file in (
        ("lmdb_raw", "resized_lmdb", "LMDB", "data.mdb"),
        ("lmdb_encoded", "encoded_lmdb", "LMDB", "data.mdb"),
        ("leveldb", "resized_leveldb", "LEVELDB", ""),
    ):
        folder = f"m_{name}"
        shutil.copytree(f"tools/{source}", folder)
        # Of a LevelDB, the file that has the records.
        largest = max(Path(folder).iterdir(), key=lambda path: path.stat().st_size)
        path = Path(folder, file) if file else largest
        damage = damage_pages() if file else damage_bytes(512)
        read = database_reader(folder, backend)
        formats[name] = Format(path.read_bytes(), str(path), damage, read)
    return formats


def database_reader(folder: str, backend: str) -> Reader:
    definition = f"{folder}.prototxt"
    Path(definition).write_text(texts.DATABASE % (folder, backend))

    def read(path: str) -> str | None:
        said = use_net(load_net(definition, "TRAIN", quiet=True), 4)
        if "encoded" not in folder:  # their images are of several sizes
            with open_database(folder, backend.lower(), announce=False) as database:
                image_mean(database, lambda count: None)
        return said

    return read


def array_formats() -> dict[str, Format]:
    """HDF5 data, a mean, and Datums by themselves."""
    draws = np.random.default_rng(0)
    with h5py.File("good.h5", "w") as file:
        file["data"] = draws.random((12, 2, 5, 4), np.float32)
        labels = np.arange(12, dtype=np.float32)
        file.create_dataset("label", data=labels, chunks=(4,), compression="gzip", maxshape=(None,))
    mean = Path("tools/mean.binaryproto").read_bytes()
    raw = Datum(channels=1, height=6, width=5, data=draws.bytes(30), label=1).SerializeToString()
    floats = Datum(channels=1, height=2, width=2, float_data=[1.5] * 4).SerializeToString()
    picture = draws.integers(0, 256, (24, 20, 3)).astype(np.uint8)
    endings = (".png", ".jpg", ".bmp", ".webp", ".tiff", ".ppm")
    pictures = [bytes(cv2.imencode(ending, picture)[1]) for ending in endings]
    in_datum = damage_message(Datum.DESCRIPTOR)

    def damage_datum(good: bytes, draw: random.Random) -> bytes:
        return in_datum(draw.choice([raw, floats]), draw)

    def damage_picture(good: bytes, draw: random.Random) -> bytes:
        data = damage_bytes(200)(draw.choice(pictures), draw)
        return Datum(data=data, label=3, encoded=True).SerializeToString()

    encoded = Datum(data=pictures[0], label=3, encoded=True).SerializeToString()
    in_mean = damage_message(BlobProto.DESCRIPTOR)
    hdf5 = Path("good.h5").read_bytes()
    return {
        "hdf5_data": Format(hdf5, "m.h5", damage_bytes(6000), read_rows),
        "mean": Format(mean, "m.binaryproto", in_mean, read_mean),
        "datum": Format(raw, "m.datum", damage_datum, read_datum),
        "image_datum": Format(encoded, "m.image", damage_picture, read_datum),
    }


def read_rows(path: str) -> str | None:
    Path("rows.txt").write_text(f"{path}\n")
    Path("rows.prototxt").write_text(texts.ROWS)
    return use_net(load_net("rows.prototxt", "TRAIN", quiet=True), 3)


def read_mean(path: str) -> str | None:
    transform = Transform(TransformationParameter(mean_file=path), TEST)
    assert transform.mean is not None
    return not_finite([transform.mean])


def read_datum(path: str) -> str | None:
    raw = Path(path).read_bytes()
    parse_alike([raw, raw])
    image = parse_datum(raw).image()
    return not_finite([torch.from_numpy(np.array(image))])


def listed_formats() -> dict[str, Format]:
    """Training logs, annotations of objects, and lists, each of several kinds for all readers."""
    log = (GOLDEN / "logs/train.log").read_bytes().splitlines(keepends=True)
    # Of the definitions and of the training, the beginning.
    solving = next(at for at, line in enumerate(log) if b"] Solving " in line)
    training = b"".join([*log[:30], *log[solving : solving + 30]])
    return {
        "log": Format(training, "m.log", damage_lines, read_log),
        "annotation": one_of(texts.ANNOTATIONS, "m.annotation", read_annotation),
        "list": one_of(texts.LISTS, "m.list", read_lists),
    }


def one_of(goods: Sequence[str], file: str, read: Reader) -> Format:
    """A format of several good files, of which one is damaged each time."""

    def damage(good: bytes, draw: random.Random) -> bytes:
        return damage_lines(draw.choice(goods).encode(), draw)

    return Format(goods[0].encode(), file, damage, read)


def read_by_all(*readers: Callable[[], object]) -> None:
    """Call all of them. Raises the CaffeError of the last where all raise one."""
    refused = []
    for read in readers:
        try:
            read()
        except CaffeError as error:
            refused.append(error)
    if len(refused) == len(readers):
        raise refused[-1]


def read_log(path: str) -> None:
    read_by_all(lambda: read_run_log(path, "run"), lambda: parse_log(path))


def read_annotation(path: str) -> None:
    labels = {"cat": 1, "7": 7}
    read_by_all(*(partial(read_groups, path, kind, (40, 50), labels) for kind in READERS))


def read_lists(path: str) -> None:
    read_by_all(
        lambda: read_window_file(path, "", 0.5, 0.5),
        lambda: read_object_file(path, ""),
        lambda: read_clips(path),
        lambda: read_names_and_sizes(path),
        lambda: list(read_pairs(path)),
        lambda: read_label_map(path),
    )


def read_list(path: str) -> str | None:
    Path("images.prototxt").write_text(texts.IMAGES % path)
    return use_net(load_net("images.prototxt", "TRAIN", quiet=True), 2)


def check_good(formats: dict[str, Format]) -> None:
    """Read what is whole; raises if one cannot be read."""
    for name, each in formats.items():
        Path(each.file).write_bytes(each.good)
        said = each.read(each.file)
        assert said is None, f"{name}: {said}"
    for text, _ in texts.NETS.values():
        parse_text(text, NetParameter).check_finite()
