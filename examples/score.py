#!/usr/bin/env python3
"""Score a model on the database that its definition names.

python score.py models/lenet/train_val.prototxt lenet.caffemodel [BATCHES]
"""

from __future__ import annotations

import sys

import torch

from caffe_dns import load_net


def main(definition: str, weights: str, batches: int) -> None:
    net = load_net(definition, phase="TEST", weights=weights, surgery=None)
    sums: dict[str, float] = {}
    with torch.no_grad():
        for _ in range(batches):
            blobs = net()  # the next batch of the data layers
            for name in net.outputs:
                sums[name] = sums.get(name, 0.0) + blobs[name].float().mean().item()
    for name, total in sums.items():
        print(f"{name} = {total / batches:.4f}")
    for layer, params in net.params.items():
        kept = sum(int(blob.count_nonzero()) for blob in params)
        print(f"{layer}: {kept} of {sum(blob.numel() for blob in params)} numbers are not zero")
    net.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 100)
