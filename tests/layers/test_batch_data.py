"""Batches on a GPU: finished on a stream of their own, the same as on the CPU; many at once."""

from __future__ import annotations

import gc
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from caffe_dns.layers import Context
from caffe_dns.layers.batch_data import _Feed
from tests.layers.data_harness import data_layer
from tests.oracle import GOLDEN

TEXT = (
    f"type: 'Data' data_param {{ source: '{GOLDEN}/tools/resized_lmdb' backend: LMDB "
    f"batch_size: 7 }} transform_param {{ crop_size: 15 mirror: true scale: 0.5 "
    f"mean_file: '{GOLDEN}/tools/mean.binaryproto' }}"
)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_of_the_cpu() -> None:
    with data_layer(TEXT, train=True) as layer:
        expected = [[top.clone() for top in layer()] for _ in range(20)]
    context = Context(device=torch.device("cuda"))
    with data_layer(TEXT, train=True, context=context) as layer:
        for tops in expected:
            torch.cuda._sleep(100_000)  # so that batches get far ahead of the net
            for top, expected_top in zip(layer(), tops, strict=True):
                assert top.device.type == "cuda"
                assert torch.equal(top.cpu(), expected_top)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_is_put_where_it_is_offered_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_dns.layers.data.MOST_AT_ONCE", 1)
    with data_layer(TEXT, train=True) as layer:
        expected = [[top.clone() for top in layer()] for _ in range(6)]
    context = Context(device=torch.device("cuda"))
    with data_layer(TEXT, train=True, context=context) as layer:
        place, label = (top.clone() for top in layer())
        for images, labels in expected[1:4]:
            layer.offer([place, label])
            tops = layer()
            assert tops[0] is place and torch.equal(place.cpu(), images)
            assert torch.equal(tops[1].cpu(), labels)
        before = place.clone()
        assert torch.equal(layer()[0].cpu(), expected[4][0])  # an offer is good once
        layer.offer([place[1:], label])
        assert torch.equal(layer()[0].cpu(), expected[5][0])
        assert torch.equal(place, before)


def test_decoding_takes_the_part_of_a_host_that_is_of_this_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def none(ranks: int, _: int) -> int:
        asked.append(ranks)
        return 0

    monkeypatch.setattr("caffe_dns.data.batches.decoding_processes", none)
    context = Context(rank=5, world_size=8, local_size=4)
    for train in (True, False):  # one rank alone tests
        with data_layer(TEXT, train=train, context=context) as layer:
            layer.reader(layer._share(), pin=True)
    assert asked == [4, 1]


def test_a_forgotten_layer_stops_its_thread() -> None:
    before = set(threading.enumerate())  # of which some may end meanwhile
    with data_layer(TEXT) as layer:
        layer()
        assert set(threading.enumerate()) - before
        layer._feed, feed = None, layer._feed  # so that closing the layer does not stop it
    del layer, feed
    gc.collect()
    assert set(threading.enumerate()) <= before


def test_what_is_read_for_several_batches_is_handed_out_in_parts() -> None:
    numbers = torch.arange(12.0).view(6, 2)
    batch = SimpleNamespace(tops=lambda device: (numbers, numbers[:, 0]))
    reader: Any = SimpleNamespace(read=lambda: batch, close=lambda: None)
    feed = _Feed(reader, torch.device("cpu"), depth=6, size=2, at_once=3, name="data")
    parts = [feed.get(()) for _ in range(4)]
    feed.close()
    assert feed.taken == 4
    assert torch.equal(torch.cat([images for images, _ in parts[:3]]), numbers)
    assert torch.equal(parts[3][1], numbers[:2, 0])
