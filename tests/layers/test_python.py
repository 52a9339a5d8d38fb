"""Python layers: what their code sees, where gradients go, and what is said when it fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns import load_net
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Context, Layer, Shape
from caffe_dns.layers.python import Python
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.text import read_text
from caffe_dns.solver.solver import Solver
from caffe_dns.weights import load_weights, save_weights
from tests.cli.harness import complaint, run_well
from tests.layers.harness import check_gradients, draw, make_layer, run
from tests.user_code import LAYERS, fresh_imports


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with the module `user`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user.py").write_text(LAYERS)
    with fresh_imports():
        yield tmp_path


def write_module(name: str, *lines: str) -> None:
    Path(f"{name}.py").write_text("\n".join(lines) + "\n")


def write_layer(name: str, *body: str) -> None:
    """A module `name` with a layer `It`, whose methods are `body`."""
    write_module(name, "import caffe", "class It(caffe.Layer):", *[f"    {x}" for x in body])


def python_layer(
    layer: str, *shapes: Shape, module: str = "user", tops: int = 1, more: str = ""
) -> Layer:
    definition = f"type: 'Python' python_param {{ module: '{module}' layer: '{layer}' }} {more}"
    context = Context(allow_python_layers=True)
    return make_layer(definition, *shapes, tops=tops, context=context)


def python_net(text: str) -> Net:
    Path("net.prototxt").write_text(text)
    return load_net("net.prototxt", "TRAIN", allow_python_layers=True)


def failure(layer: str, *shapes: Shape, module: str = "user", tops: int = 1) -> str:
    """What is said when the layer is set up and run forward and backward."""
    bottoms = [torch.ones(shape, requires_grad=True) for shape in shapes]
    with pytest.raises(CaffeError) as caught:
        top, *_ = python_layer(layer, *shapes, module=module, tops=tops)(*bottoms)
        top.sum().backward()
    assert caught.value.layer == "layer"
    return str(caught.value).replace(f"{Path.cwd()}/", "")


# Arithmetic -------------------------------------------------------------------------------------

LOSS_NET = """
    layer {{ name: 'data' type: 'Input' top: 'x' top: 'y'
      input_param {{ shape {{ dim: 5 dim: 3 }} shape {{ dim: 5 dim: 4 }} }} }}
    layer {{ name: 'ip' type: 'InnerProduct' bottom: 'x' top: 'ip'
      inner_product_param {{ num_output: 4 weight_filler {{ type: 'xavier' }} }} }}
    layer {{ name: 'loss' bottom: 'ip' bottom: 'y' top: 'loss' loss_weight: 3 {loss} }}"""


def test_a_loss_equals_the_built_in_one() -> None:
    inputs = {"x": draw(5, 3).float(), "y": draw(5, 4, seed=1).float()}
    results = []
    for loss in (
        "type: 'EuclideanLoss'",
        "type: 'Python' python_param { module: 'user' layer: 'Euclidean' }",
    ):
        net = python_net(LOSS_NET.format(loss=loss))
        blobs = net(inputs)
        net.loss(blobs).backward()
        gradients = [param.tensor.grad for param in net.learnable_params[:2]]
        results.append([blobs["loss"].detach(), *gradients])
    for ours, builtin in zip(*results, strict=True):
        assert ours is not None and builtin is not None
        torch.testing.assert_close(ours, builtin)


def test_gradients_of_bottoms_and_blobs() -> None:
    layer = python_layer("Slopes", (4, 3, 2))
    assert [tuple(blob.shape) for blob in layer.blobs] == [(3, 1), (3, 1)]
    check_gradients(layer, draw(4, 3, 2))


def test_several_bottoms_and_tops() -> None:
    more = "python_param { param_str: '2.5' }"
    layer = python_layer("Times", (4, 3), (2,), tops=2, more=more)
    bottoms = [draw(4, 3), draw(2, seed=1)]
    for top, bottom in zip(run(layer, *bottoms), bottoms, strict=True):
        torch.testing.assert_close(top, 2.5 * bottom)
    check_gradients(layer, *bottoms)


def test_in_place_layers_leave_the_bottom_to_others() -> None:
    text = """
      layer { name: 'in' type: 'Input' top: 'x' input_param { shape { dim: 2 dim: 3 } } }
      layer { name: 'sigmoid' type: 'Sigmoid' bottom: 'x' top: 'y' }
      layer { name: 'double' type: 'Python' bottom: 'y' top: 'y'
        python_param { module: 'user' layer: 'Times' param_str: '2' } }"""
    net = python_net(text)
    x = draw(2, 3).requires_grad_()
    y = net({"x": x})["y"]
    sigmoid = x.sigmoid()
    torch.testing.assert_close(y, 2 * sigmoid)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, 2 * sigmoid * (1 - sigmoid))


def test_backward_sees_the_blobs_of_its_own_forward_pass() -> None:
    write_layer(
        "squares",
        "def reshape(self, bottom, top): top[0].reshape(*bottom[0].shape)",
        "def forward(self, bottom, top): top[0].data[...] = bottom[0].data ** 2",
        "def backward(self, top, propagate_down, bottom):",
        "    assert (top[0].data == bottom[0].data ** 2).all()",
        "    bottom[0].diff[...] = 2 * bottom[0].data * top[0].diff",
    )
    layer = python_layer("It", (3,), module="squares")
    first, second = draw(3).requires_grad_(), draw(3, seed=1).requires_grad_()
    tops = [run(layer, bottom)[0] for bottom in (first, second)]
    tops[0].sum().backward()
    assert first.grad is not None
    torch.testing.assert_close(first.grad, 2 * first.detach())


def test_propagate_down_and_missing_gradients() -> None:
    write_layer(
        "picky",
        "def reshape(self, bottom, top): top[0].reshape(*bottom[0].shape)",
        "def forward(self, bottom, top): top[0].data[...] = bottom[0].data + bottom[1].data",
        "def backward(self, top, propagate_down, bottom): self.asked = propagate_down",
    )
    layer = python_layer("It", (3,), (3,), module="picky")
    wanted = draw(3).requires_grad_()
    (top,) = run(layer, draw(3, seed=1), wanted)
    top.sum().backward()
    assert isinstance(layer, Python)
    assert layer.user.asked == [False, True]  # type: ignore[attr-defined]
    assert wanted.grad is not None and not wanted.grad.any()


def test_a_data_layer_may_change_its_shape() -> None:
    text = """
      layer { name: 'data' type: 'Python' top: 'data' top: 'label'
        python_param { module: 'user' layer: 'Counter' } }
      layer { name: 'ip' type: 'InnerProduct' bottom: 'data' top: 'ip'
        inner_product_param { num_output: 2 } }"""
    net = python_net(text)
    assert net.blob_shapes["data"] == (1, 3)
    earlier = net()
    for rows in (2, 3):
        blobs = net()
        assert blobs["data"].tolist() == np.arange(3 * rows).reshape(-1, 3).tolist()
        assert blobs["label"].tolist() == [rows] * rows
        assert blobs["ip"].shape == (rows, 2)
    assert earlier["data"].tolist() == [[0, 1, 2]]


def test_images_of_their_own_size_for_each_pass() -> None:
    """Looked at in `reshape`, as the data layers of fully convolutional nets do."""
    write_layer(
        "sized",
        "def setup(self, bottom, top): self.turn = 0",
        "def reshape(self, bottom, top): top[0].reshape(1, 1, 2 + self.turn % 3, 4)",
        "def forward(self, bottom, top):",
        "    top[0].data[...] = self.turn",
        "    self.turn += 1",
    )
    net = python_net("""
        layer { name: 'data' type: 'Python' top: 'data'
          python_param { module: 'sized' layer: 'It' } }
        layer { name: 'pool' type: 'Pooling' bottom: 'data' top: 'pool'
          pooling_param { pool: MAX global_pooling: true } }""")
    assert net.blob_shapes["data"] == (1, 1, 2, 4)
    for turn in range(4):
        blobs = net()
        assert blobs["data"].shape == (1, 1, 2 + turn % 3, 4)
        assert blobs["pool"].tolist() == [[[[turn]]]]


def test_what_the_definition_tells() -> None:
    write_layer(
        "told",
        "def reshape(self, bottom, top): top[0].reshape(1)",
        "def forward(self, bottom, top): top[0].data[0] = self.phase",
        "def __init__(self, param, *rest):",
        "    super().__init__(param, *rest)",
        "    self.seen = self.param_str, self.param_str_, self.type",
    )
    for phase, number in (("TRAIN", 0), ("TEST", 1)):
        layer = python_layer(
            "It",
            module="told",
            more=f"phase: {phase} python_param {{ param_str: '{{a: 1}}' share_in_parallel: true }}",
        )
        assert isinstance(layer, Python)
        # As text it is the name, as in Faster R-CNN's Caffe; BVLC's has the number there, too.
        assert (str(layer.user.phase), layer.user.phase) == (phase, number)
        assert layer.user.seen == ("{a: 1}", "{a: 1}", "Python")  # type: ignore[attr-defined]
        assert run(layer)[0].tolist() == [number]


def test_layers_without_tops_run() -> None:
    write_layer("log", "def forward(self, bottom, top): self.sum = bottom[0].data.sum()")
    layer = python_layer("It", (2, 3), module="log", tops=0)
    layer(torch.ones(2, 3))
    assert isinstance(layer, Python) and layer.user.sum == 6  # type: ignore[attr-defined]


# Nets and solvers -------------------------------------------------------------------------------

TRAIN_NET = """
    layer {{ name: 'data' type: 'DummyData' top: 'x' top: 'y'
      dummy_data_param {{ shape {{ dim: 6 dim: 3 dim: 2 }} shape {{ dim: 6 dim: 4 }}
        data_filler {{ type: 'gaussian' }} data_filler {{ type: 'gaussian' }} }} }}
    layer {{ name: 'slopes' bottom: 'x' top: 'slopes' {slopes} }}
    layer {{ name: 'ip' type: 'InnerProduct' bottom: 'slopes' top: 'ip'
      inner_product_param {{ num_output: 4 weight_filler {{ type: 'xavier' }} }} }}
    layer {{ name: 'loss' bottom: 'ip' bottom: 'y' top: 'loss' loss_weight: 1 {loss} }}"""
BUILT_IN = {
    "slopes": "type: 'Scale' scale_param { bias_term: true }",
    "loss": "type: 'EuclideanLoss'",
}
BY_HAND = {
    "slopes": "type: 'Python' python_param { module: 'user' layer: 'Slopes' }",
    "loss": "type: 'Python' python_param { module: 'user' layer: 'Euclidean' }",
}


def write_training(net: str, name: str) -> str:
    Path(f"{name}.prototxt").write_text(net)
    Path(f"{name}_solver.prototxt").write_text(
        f"net: '{name}.prototxt' base_lr: 0.05 momentum: 0.9 weight_decay: 0.01 iter_size: 2 "
        f"lr_policy: 'fixed' max_iter: 6 snapshot_prefix: '{name}' random_seed: 7 "
        "solver_mode: CPU"
    )
    return f"{name}_solver.prototxt"


def train(net: str, name: str) -> Solver:
    file = write_training(net, name)
    solver = Solver(read_text(file, SolverParameter).message, allow_python_layers=True)
    solver.step(6)
    return solver


def test_training_equals_that_of_built_in_layers() -> None:
    ours = train(TRAIN_NET.format(**BY_HAND), "ours")
    builtin = train(TRAIN_NET.format(**BUILT_IN), "builtin")
    for name in ("slopes", "ip"):
        for a, b in zip(ours.net.params[name], builtin.net.params[name], strict=True):
            torch.testing.assert_close(a.flatten(), b.flatten())
    assert not ours.net.params["slopes"][0].allclose(torch.ones(3, 1))


def test_models_hold_the_blobs_of_python_layers() -> None:
    solver = train(TRAIN_NET.format(**BY_HAND), "ours")
    save_weights(solver.net, "trained.caffemodel")
    net = python_net(TRAIN_NET.format(**BY_HAND))
    load_weights(net, "trained.caffemodel")
    layer = net.layer("slopes")
    assert isinstance(layer, Python)
    for blob, array, trained in zip(
        layer.blobs, layer.user.blobs, solver.net.params["slopes"], strict=True
    ):
        assert torch.equal(blob, trained)
        assert np.array_equal(array.data, trained.detach().numpy())


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    solver = write_training(TRAIN_NET.format(**BY_HAND), "ours")
    refused = complaint(["train", "--solver", solver], capsys)
    assert "layer 'slopes'" in refused and "--allow-python-layers" in refused
    assert "user" not in sys.modules
    run_well(["train", "--solver", solver, "--allow-python-layers"], capsys)
    assert Path("ours_iter_6.caffemodel").exists()


# Errors -----------------------------------------------------------------------------------------


def test_code_is_not_run_unasked() -> None:
    write_module("evil", "raise SystemExit")
    with pytest.raises(CaffeError) as caught:
        make_layer("type: 'Python' python_param { module: 'evil' layer: 'It' }", tops=1)
    assert str(caught.value) == (
        "layer 'layer': the definition wants to run code: the Python class evil.It; if you trust "
        "it, give --allow-python-layers (from Python: allow_python_layers)"
    )
    assert "evil" not in sys.modules and "caffe" not in sys.modules


def test_a_class_that_cannot_be_had() -> None:
    assert failure("It", module="nowhere") == (
        "layer 'layer': there is no Python module 'nowhere' in the current folder or on PYTHONPATH"
    )
    assert "has no class 'Tims' (did you mean 'Times'?)" in failure("Tims")
    write_module("other", "class It:", "    pass")
    assert failure("It", module="other") == (
        "layer 'layer': other.It does not derive from caffe.Layer"
    )
    with pytest.raises(CaffeError, match=r"layer 'layer': python_param.layer: must be given"):
        make_layer("type: 'Python' python_param { module: 'user' }", tops=1)


def test_a_module_that_fails() -> None:
    write_module("broken", "import caffe", "", "x = 1 / 0")
    assert failure("It", module="broken") == (
        "broken.py:3: layer 'layer': importing 'broken' raised ZeroDivisionError: division by zero"
    )
    write_module("needy", "import caffe", "import not_installed")
    assert failure("It", module="needy") == (
        "needy.py:2: layer 'layer': importing 'needy' raised ModuleNotFoundError: "
        "No module named 'not_installed'"
    )
    write_module("typo", "import caffe", "class It(caffe.Layer)", "    pass")
    assert failure("It", module="typo").startswith(
        "typo.py:2: layer 'layer': importing 'typo' raised SyntaxError: "
    )


METHODS = {
    "setup": "def setup(self, bottom, top): pass",
    "reshape": "def reshape(self, bottom, top): top[0].reshape(*bottom[0].shape)",
    "forward": "def forward(self, bottom, top): pass",
    "backward": "def backward(self, top, propagate_down, bottom): pass",
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_fails(method: str) -> None:
    name = f"fails_in_{method}"
    head = METHODS[method].rpartition(":")[0]
    methods = {**METHODS, method: f"{head}: self.helper(bottom)"}
    write_layer(
        name, *methods.values(), "def helper(self, bottom):", "    bottom[0].data.reshape(5)"
    )
    message = failure("It", (2, 3), module=name)
    assert message == (
        f"{name}.py:8: layer 'layer': {method} of {name}.It raised ValueError: "
        "cannot reshape array of size 6 into shape (5,)"
    )


def test_errors_are_runtime_errors_too() -> None:
    write_layer("bare", "def setup(self, bottom, top):", "    raise RuntimeError")
    with pytest.raises(RuntimeError, match=r"setup of bare\.It raised RuntimeError$"):
        python_layer("It", module="bare")


def test_a_method_that_is_missing() -> None:
    write_layer("lazy", METHODS["reshape"], METHODS["forward"])
    message = failure("It", (2,), module="lazy")
    assert message == "layer 'layer': lazy.It has no method 'backward'"


def test_data_cannot_be_replaced() -> None:
    write_layer(
        "replaces", METHODS["reshape"], "def forward(self, bottom, top): top[0].data = bottom[0]"
    )
    assert "forward of replaces.It raised AttributeError" in failure("It", (2,), module="replaces")


def test_the_place_in_the_definition_is_given_when_the_code_has_none() -> None:
    Path("net.prototxt").write_text(
        "layer { name: 'in' type: 'Input' top: 'x' }\n"
        "layer { name: 'it' type: 'Python' bottom: 'x' top: 'y'\n"
        "  python_param { module: 'user' layer: 'No' } }"
    )
    with pytest.raises(CaffeError, match=r"^net.prototxt:2: layer 'it': the module 'user'"):
        load_net("net.prototxt", allow_python_layers=True)


def test_another_caffe_is_named() -> None:
    write_module("caffe", "class Layer:", "    pass")
    sys.path.insert(0, str(Path.cwd()))
    __import__("caffe")
    write_layer("foreign", "pass")
    message = failure("It", module="foreign")
    assert "does not derive from caffe.Layer of caffe_dns.pycaffe; `import caffe` gave " in message
    assert message.endswith("caffe.py")
