"""Nets that use the weights of another, layer by layer."""

from __future__ import annotations

import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.weights import share_weights
from tests.nets import input_layer, ip, recorded_log
from tests.weights.test_transfer import DATA, TEXT, plain


def test_nets_share_what_they_have_in_common() -> None:
    owner = plain(TEXT + ip("only_here", "b"))
    net = plain(TEXT)
    with recorded_log() as messages:
        share_weights(net, owner)
    assert messages == ["Ignoring source layer only_here"]
    for name, blobs in net.params.items():
        for mine, his in zip(blobs, owner.params[name], strict=True):
            assert mine.data_ptr() == his.data_ptr()
            # Gradients stay apart.
            assert (mine is his) is not isinstance(mine, torch.nn.Parameter)


def test_nets_share_blobs_of_permissive_sharers() -> None:
    text = input_layer(x=(2, 6), y=(2, 6)) + ip("a", "x", "param { name: 'w' }")
    text += ip("b", "y", "param { name: 'w' share_mode: PERMISSIVE }").replace(
        "num_output: 5", "num_output: 5 transpose: true"
    )
    owner, net = plain(text), plain(text)
    share_weights(net, owner)
    owner.params["a"][0].data[1, 2] = 9
    assert net.params["b"][0].flatten()[8] == 9
    assert net.params["b"][0].shape == (6, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("num_output: 5", "num_output: 4"), "layer 'a': Cannot copy param 0 weights; shape mism"),
        (
            ("num_output: 5", "num_output: 5 bias_term: false"),
            "Incompatible number of blobs: 1 here",
        ),
    ],
)
def test_nets_that_differ_cannot_share(change: tuple[str, str], message: str) -> None:
    text = DATA + ip("a", "data")
    with pytest.raises(CaffeError) as caught:
        share_weights(plain(text.replace(*change)), plain(text))
    assert message in str(caught.value)
