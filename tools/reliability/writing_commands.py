"""Commands of dns that write files, and what they read, for who lets their writes fail."""

from __future__ import annotations

import struct
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden"

DATA = """layer { name: "mnist" type: "Data" top: "data" top: "label"
  data_param { source: "%s/data/mnist500_test_lmdb" batch_size: 10 backend: LMDB } }
"""
LAYERS = """layer { name: "pool" type: "Pooling" bottom: "data" top: "pool"
  pooling_param { pool: AVE kernel_size: 4 stride: 4 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool" top: "ip1"
  inner_product_param { num_output: 30 threshold: 1 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""
NET = DATA % GOLDEN + LAYERS
#: The net for images in colour, of which it sees one channel.
DEPLOYED = """layer { name: "data" type: "Input" top: "colours"
  input_param { shape { dim: 2 dim: 3 dim: 28 dim: 28 } } }
layer { name: "slice" type: "Slice" bottom: "colours" top: "data" top: "rest"
  slice_param { slice_point: 1 } }
""" + LAYERS.replace('type: "SoftmaxWithLoss"', 'type: "Softmax"').replace(' bottom: "label"', "")
ROWS = """layer { name: "rows" type: "HDF5Output" bottom: "ip2" bottom: "label"
  hdf5_output_param { file_name: "out/rows.h5" } }
"""
SOLVER = """net: "net.prototxt" snapshot_prefix: "out/s" snapshot: 2 max_iter: 4 display: 1
base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 random_seed: 3 surgery_iter_power: 1
"""
LABELS = 'item { name: "none" label: 0 display_name: "none" }\n'
V0_SOLVER = 'net: "net.prototxt" solver_type: ADAGRAD\n'

CONVERT = ["convert_imageset", "--resize_height=24", "--resize_width=20"]
IMAGES = [f"{GOLDEN}/tools/images/", "list.txt", "out/db"]
FEATURES = ["extract_features", "w.caffemodel", "net.prototxt", "ip1,ip2", "out/a,out/b", "2"]
MODEL = ["--model", "net.prototxt", "--weights", "w.caffemodel"]
SCORING = ["--model_def", "deployed.prototxt", "--pretrained_model", "w.caffemodel"]
WINDOWS = ["-crop_mode", "list", "--context_pad", "4"]
LOG = f"{GOLDEN}/logs/train.log"
#: Each command by a name of its own.
COMMANDS: dict[str, list[str]] = {
    "train": ["train", "--solver", "solver.prototxt"],
    "train_hdf5": ["train", "--solver", "hdf5.prototxt"],
    "train_report": ["train", "--solver", "solver.prototxt", "--report", "out/page.html"],
    "train_tensorboard": ["train", "--solver", "seldom.prototxt", "--tensorboard", "out/board"],
    "train_target": ["train", "--solver", "solver.prototxt", "--target-compression", "3"],
    "hdf5_output": ["test", "--model", "rows.prototxt", *MODEL[2:], "-iterations", "20"],
    "export": ["export", *MODEL, "--output", "out/x.caffemodel", "--definition", "out/x.prototxt"],
    "export_dnsz": ["export", *MODEL, "--output", "out/x.dnsz"],
    "export_onnx": ["export", *MODEL, "--output", "out/x.onnx"],
    "convert_imageset": [*CONVERT, *IMAGES],
    "convert_imageset_leveldb": [*CONVERT, "--backend=leveldb", *IMAGES],
    "convert_annoset": [
        "convert_annoset",
        "--anno_type=detection",
        "--label_type=txt",
        "--label_map_file=labels.prototxt",
        f"{GOLDEN}/tools/images/",
        "pairs.txt",
        "out/db",
    ],
    "convert_mnist_data": ["convert_mnist_data", "images.idx", "labels.idx", "out/db"],
    "extract_features": [*FEATURES, "lmdb"],
    "extract_features_leveldb": [*FEATURES, "leveldb"],
    "compute_image_mean": [
        "compute_image_mean",
        f"{GOLDEN}/tools/resized_lmdb",
        "out/mean.binaryproto",
    ],
    "upgrade_net": ["upgrade_net_proto_text", f"{GOLDEN}/legacy/v1.prototxt", "out/new.prototxt"],
    "upgrade_weights": ["upgrade_net_proto_binary", "w.caffemodel", "out/new.caffemodel"],
    "upgrade_solver": ["upgrade_solver_proto_text", "old_solver.prototxt", "out/new.prototxt"],
    "deploy": ["deploy", "--model", "net.prototxt", "--output", "out/deploy.prototxt"],
    "draw_net": ["draw_net", "net.prototxt", "out/net.dot"],
    "parse_log": ["parse_log", LOG, "out"],
    "plot": ["plot", LOG, "--output", "out/curves.svg"],
    "report": ["report", LOG, "--output", "out/page.html"],
    "sensitivity": ["sensitivity", *MODEL, "--iterations", "1", "--output", "out/s"],
    "classify": ["classify", *SCORING, f"{GOLDEN}/tools/images", "out/scores.npy"],
    "detect": ["detect", *SCORING, *WINDOWS, "windows.csv", "out/scores.csv"],
}


def prepare(folder: Path) -> None:
    """What the commands read."""
    names = [path.name for path in sorted((GOLDEN / "tools/images").iterdir())]
    (folder / "out").mkdir()
    texts = {
        "net.prototxt": NET,
        "rows.prototxt": NET + ROWS,
        "deployed.prototxt": DEPLOYED,
        "solver.prototxt": SOLVER,
        "seldom.prototxt": SOLVER.replace("display: 1", "display: 3"),
        "hdf5.prototxt": SOLVER + "snapshot_format: HDF5\n",
        "weights.prototxt": SOLVER.replace("out/s", "w").replace("max_iter: 4", "max_iter: 1"),
        "old_solver.prototxt": V0_SOLVER,
        "labels.prototxt": LABELS,
        "list.txt": (GOLDEN / "tools/list.txt").read_text(),
        "windows.csv": f"filename,ymin,xmin,ymax,xmax\n{GOLDEN}/tools/images/{names[0]},1,2,9,10\n",
        "pairs.txt": "".join(f"{name} {name}.txt\n" for name in names),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "images.idx").write_bytes(struct.pack(">4i", 2051, 30, 28, 28) + bytes(30 * 784))
    (folder / "labels.idx").write_bytes(struct.pack(">2i", 2049, 30) + bytes(30))
