#!/usr/bin/env python3
"""Train a PyTorch module on a Caffe database of 28 x 28 images, and prune it meanwhile.

    python prune_module.py data/mnist/mnist_train_lmdb [STEPS [CHECKPOINT]]

Run again with the checkpoint that it leaves, it goes on from there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from caffe_dns import load_net, prune

DATA = """
layer {
  name: "data" type: "Data" top: "data" top: "label"
  transform_param { scale: 0.00390625 }
  data_param { source: "%s" batch_size: 64 backend: LMDB }
}
"""


def main(database: str, steps: int, checkpoint: Path) -> None:
    torch.manual_seed(1)
    definition = checkpoint.with_suffix(".prototxt")
    definition.write_text(DATA % database)
    data = load_net(definition, "TRAIN")
    model = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    pruner = prune(model, compression=20, steps=steps, interval=max(1, steps // 40))
    parts = {"model": model, "optimizer": optimizer, "pruner": pruner}
    if checkpoint.exists():
        for name, state in torch.load(checkpoint).items():
            parts[name].load_state_dict(state)
        print(f"going on after step {pruner.iteration}")
    while pruner.iteration < steps:
        batch = data()
        loss = cross_entropy(model(batch["data"]), batch["label"].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.step()
        if pruner.iteration % max(1, steps // 10) == 0:
            print(f"step {pruner.iteration}: loss {loss.item():.4f}")
            torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
    data.close()
    print(pruner.report())


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]) if len(sys.argv) > 2 else 8000,
        Path(sys.argv[3] if len(sys.argv) > 3 else "prune_module.pt"),
    )
