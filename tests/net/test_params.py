"""Which blobs are parameters, who owns them, and what sharers may say (`Net::AppendParam`)."""

from __future__ import annotations

import pytest
import torch

from caffe_dns.layers.base import Context
from caffe_dns.net import Net
from tests.nets import input_layer, layer, make_net, recorded_log, refused

DATA = input_layer(a=(3, 4, 5, 2), b=(3, 4, 5, 2), c=(3, 40))


def ip(
    name: str, bottom: str, params: str = "", settings: str = "num_output: 6", kind: str = "I"
) -> str:
    blobs = f"bottom: '{bottom}' top: '{name}' {params}"
    type_ = "CInnerProduct" if kind == "C" else "InnerProduct"
    filled = f"{settings} weight_filler {{ type: 'gaussian' }}"
    return (
        f"layer {{ name: '{name}' type: '{type_}' {blobs} inner_product_param {{ {filled} }} }}\n"
    )


def described(net: Net) -> list[tuple[str, int, float, float, bool]]:
    return [
        (p.layer.name, p.index, p.lr_mult, p.decay_mult, p.is_mask) for p in net.learnable_params
    ]


def test_defaults_and_settings() -> None:
    text = DATA + ip("x", "a", "param { lr_mult: 0.5 } param { decay_mult: 0 }") + ip("y", "b")
    assert described(make_net(text, context=Context(surgery=False))) == [
        ("x", 0, 0.5, 1, False),
        ("x", 1, 1, 0, False),
        ("y", 0, 1, 1, False),
        ("y", 1, 1, 1, False),
    ]


def test_masks_stand_after_their_layers_blobs_and_never_learn() -> None:
    text = DATA + ip("x", "a") + ip("y", "b", kind="C")
    masks = [("x", 2, 0, 1, True), ("y", 2, 0, 1, True), ("y", 3, 0, 1, True)]
    net = make_net(text)
    assert [entry for entry in described(net) if entry[4]] == masks
    assert [(p.layer.name, p.index) for p in net.learnable_params] == [
        *(("x", i) for i in range(3)),
        *(("y", i) for i in range(4)),
    ]
    assert [p.tensor.requires_grad for p in net.learnable_params] == [True] * 2 + [False] + [
        True
    ] * 2 + [False] * 2


@pytest.mark.parametrize("lr_mult", ["", "lr_mult: 1", "lr_mult: 0"])
def test_a_mask_may_have_a_param(lr_mult: str) -> None:
    text = DATA + ip("x", "a", f"param {{}} param {{}} param {{ {lr_mult} }}")
    assert described(make_net(text))[2] == ("x", 2, 0, 1, True)
    # The same definition without surgery has a `param {}` too many, which is let pass.
    assert len(described(make_net(text, context=Context(surgery=False)))) == 2


@pytest.mark.parametrize("settings", ["num_output: 6 sparsity_term: false", "num_output: 6"])
def test_too_many_params(settings: str) -> None:
    count = 3 if "false" in settings else 4
    message = refused(DATA + ip("x", "a", "param {} " * count, settings))
    blobs = count - 1
    assert f"layer 'x': param: Too many params specified: {count} for {blobs} blob(s)" in message


# Sharing ------------------------------------------------------------------------------------------


def shared(first: str = "", second: str = "", **kinds: str) -> str:
    """Two layers with their weights shared by name."""
    return (
        DATA
        + ip("x", "a", f"param {{ name: 'w' {first} }}", **kinds)
        + ip("y", "b", f"param {{ name: 'w' {second} }}", **kinds)
    )


def test_sharers_use_one_tensor() -> None:
    net = make_net(shared(), context=Context(surgery=False))
    assert net.params["x"][0] is net.params["y"][0]
    assert net.params["x"][1] is not net.params["y"][1]
    assert [entry[:2] for entry in described(net)] == [("x", 0), ("x", 1), ("y", 1)]
    assert not net.table.is_owner(net.steps[2].layer, 0)
    assert [(p.layer.name, p.index) for p in net.table.unshared()] == [("x", 1), ("y", 1)]
    net.loss_weights = {"x": 1.0, "y": 1.0}
    blobs = net({name: torch.rand(net.blob_shapes[name]) for name in net.inputs})
    net.loss(blobs).backward()
    weight = net.params["x"][0]
    assert weight.grad is not None
    expected = sum(blobs[name].detach().reshape(3, -1).sum(0) for name in "ab")
    torch.testing.assert_close(weight.grad, expected.expand(6, -1))


def test_a_layer_may_share_with_itself() -> None:
    names = "param { name: 'w' } param { name: 'w' }"
    text = input_layer(a=(3, 4)) + layer(
        "s", "Scale", "a", "s", f"{names} scale_param {{ bias_term: true }}"
    )
    net = make_net(text)
    assert described(net) == [("s", 0, 1, 1, False)]
    assert net.params["s"][0] is net.params["s"][1]
    assert not net.table.unshared()
    assert [net.table.is_owner(net.steps[1].layer, index) for index in (0, 1)] == [True, False]


def test_sharing_is_logged() -> None:
    with recorded_log() as messages:
        make_net(shared(), quiet=False)
    assert "Sharing parameters 'w' owned by layer 'x', param index 0" in messages


@pytest.mark.parametrize(
    ("first", "second", "lr_mult", "decay_mult"),
    [
        ("", "", 1, 1),
        ("lr_mult: 3", "", 3, 1),
        ("", "lr_mult: 3", 3, 1),
        ("lr_mult: 3 decay_mult: 0", "lr_mult: 3", 3, 0),
        ("", "lr_mult: 0 decay_mult: 2", 0, 2),
        ("decay_mult: 2", "decay_mult: 2", 1, 2),
    ],
)
def test_one_of_the_sharers_may_set_the_rates(
    first: str, second: str, lr_mult: float, decay_mult: float
) -> None:
    net = make_net(shared(first, second))
    assert described(net)[0] == ("x", 0, lr_mult, decay_mult, False)
    assert net.params["x"][0].requires_grad == (lr_mult != 0)


@pytest.mark.parametrize("field", ["lr_mult", "decay_mult"])
def test_sharers_must_agree(field: str) -> None:
    message = refused(shared(f"{field}: 2", f"{field}: 0.5"))
    wanted = f"Shared param 'w' has mismatched {field} (2 in layer 'x', 0.5 here)"
    assert message == f"layer 'y': param: {wanted}"


def test_a_third_sharer_must_agree_with_the_second() -> None:
    text = shared("", "lr_mult: 2") + ip("z", "b_", "param { name: 'w' lr_mult: 3 }")
    text = text.replace("'b_'", "'c'")
    assert "layer 'z': param: Shared param 'w' has mismatched lr_mult (2 in" in refused(text)


def test_shapes_must_agree_unless_permissive() -> None:
    text = DATA + ip("x", "a", "param { name: 'w' }")
    other = ip("y", "b", "param { name: 'w' MODE }", "num_output: 40 transpose: true")
    message = refused(text + other.replace("MODE", ""))
    assert "Cannot share param 'w' owned by layer 'x'; shape mismatch" in message
    assert "Owner layer param shape is 6 40 (240)" in message
    assert "sharing layer expects shape 40 40 (1600)" in message
    message = refused(text + other.replace("MODE", "share_mode: PERMISSIVE"))
    assert "; count mismatch" in message


PERMISSIVE = (
    DATA
    + ip("x", "a", "param { name: 'w' }")
    + ip("y", "b", "param { name: 'w' share_mode: PERMISSIVE }", "num_output: 6 transpose: true")
)


@pytest.mark.parametrize("surgery", [False, True])
def test_permissive_sharers_see_their_own_shape(surgery: bool) -> None:
    net = make_net(PERMISSIVE, context=Context(surgery=surgery))
    x, y = net.params["x"], net.params["y"]
    for index in (0, 2)[: 1 + surgery]:
        assert (tuple(x[index].shape), tuple(y[index].shape)) == ((6, 40), (40, 6))
        x[index].data[2, 3] = 7
        assert y[index].flatten()[83] == 7
    net.loss_weights = {"y": 1.0}
    blobs = net({name: torch.rand(net.blob_shapes[name]) for name in net.inputs})
    net.loss(blobs).backward()
    gradient = x[0].grad
    assert gradient is not None
    wanted = blobs["b"].detach().reshape(3, -1).sum(0).repeat_interleave(6)
    torch.testing.assert_close(gradient.flatten(), wanted)


@pytest.mark.parametrize(("kind", "blobs", "masks"), [("I", 3, [2]), ("C", 4, [2, 3])])
def test_a_shared_weight_has_one_mask_with_a_place_for_each_layer(
    kind: str, blobs: int, masks: list[int]
) -> None:
    text = DATA + ip("x", "a", "param { name: 'w' } param { name: 'v' }", kind=kind)
    net = make_net(text + ip("y", "b", "param { name: 'w' } param { name: 'v' }", kind=kind))
    x, y = net.params["x"], net.params["y"]
    assert all(x[index] is y[index] for index in range(blobs))
    assert [entry[:2] for entry in described(net) if entry[4]] == [
        *(("x", index) for index in masks),
        *(("y", index) for index in masks),
    ]


def test_the_mask_of_a_weight_whose_owner_has_none_is_the_sharers_own() -> None:
    text = DATA + ip("x", "a", "param { name: 'w' }", "num_output: 6 sparsity_term: false")
    net = make_net(text + ip("y", "b", "param { name: 'w' }"))
    assert [entry[:2] for entry in described(net) if entry[4]] == [("y", 2)]


# Statistics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", ["", "param { lr_mult: 0 }" * 3, "param { lr_mult: 1 }" * 2])
def test_statistics_never_learn_and_say_so(params: str) -> None:
    text = DATA + f"layer {{ name: 'bn' type: 'BatchNorm' bottom: 'a' top: 'bn' {params} }}"
    net = make_net(text)
    assert [entry[2] for entry in described(net)] == [0, 0, 0]
    layer = net.layer("bn")
    assert layer is not None
    assert [spec.lr_mult for spec in layer.param.param] == [0, 0, 0]


def test_shared_statistics_never_learn() -> None:
    norm = "layer {{ name: '{0}' type: 'BatchNorm' bottom: '{1}' top: '{0}' {2} }}\n"
    names = "".join(f"param {{ name: 's{i}' }}" for i in range(3))
    text = DATA + norm.format("n1", "a", names) + norm.format("n2", "b", names)
    net = make_net(text)
    assert described(net) == [("n1", index, 0, 1, False) for index in range(3)]
