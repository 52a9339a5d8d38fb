"""Layers of one name: what models and states would mix up is refused, the rest is warned of."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns import load_net
from caffe_dns.errors import CaffeError
from tests.nets import input_layer, layer, make_net, recorded_log, refused
from tests.oracle import GOLDEN

PRODUCT = "inner_product_param { num_output: 3 }"
DATA = (
    'type: "Data" data_param { source: "%s/data/mnist1k_train_lmdb" batch_size: 2 backend: LMDB }'
)


def test_refuses_two_layers_of_one_name_with_weights(tmp_path: Path) -> None:
    """Caffe trains both; from its model, both get the weights of the second."""
    lines = [
        input_layer(data=(2, 5)),
        layer("ip", "InnerProduct", "data", "a", PRODUCT),
        layer("relu", "ReLU", "a", "a"),
        layer("ip", "InnerProduct", "a", "b", PRODUCT),
    ]
    file = tmp_path / "net.prototxt"
    file.write_text("\n".join(" ".join(line.split()) for line in lines))
    with pytest.raises(CaffeError) as caught:
        load_net(file)
    assert str(caught.value) == (
        f"{file}:4: layer 'ip': 2 layers have this name (lines 2 and 4), and one of them has "
        "weights: models and states know layers by their names; rename all but one"
    )
    # One with weights is enough: the model has two layers of the name, with 2 blobs and with none.
    assert "2 layers have this name, and one" in refused(
        input_layer(data=(2, 5))
        + layer("ip", "ReLU", "data", "a")
        + layer("ip", "InnerProduct", "a", "b", PRODUCT)
    )


def test_layers_without_a_name() -> None:
    nameless = f'layer {{ type: "InnerProduct" bottom: "%s" top: "%s" {PRODUCT} }}'
    text = input_layer(data=(2, 5)) + nameless % ("data", "a") + nameless % ("a", "b")
    assert "2 layers have no name, and one of them has weights" in refused(text)


def test_refuses_two_layers_of_one_name_that_read_data() -> None:
    data = DATA % GOLDEN
    message = refused(
        f'layer {{ name: "d" {data} top: "a" }} layer {{ name: "d" {data} top: "b" }}'
    )
    assert "layer 'd': 2 layers have this name, and one of them reads data" in message


def test_layers_of_other_phases_may_have_the_name() -> None:
    data = DATA % GOLDEN
    net = make_net(
        f'layer {{ name: "d" {data} top: "a" include {{ phase: TRAIN }} }}'
        f'layer {{ name: "d" {data} top: "a" include {{ phase: TEST }} }}'
    )
    assert len(net.steps) == 1
    net.close()


def test_warns_of_the_others() -> None:
    text = input_layer(data=(2, 5)) + layer("r", "ReLU", "data", "a") + layer("r", "ReLU", "a", "b")
    with recorded_log() as messages:
        make_net(text, quiet=False)
    assert "layer 'r': 2 layers have this name" in messages
