"""A compact file in the place of weights, whatever the command; shrunk ones, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns import load_net
from caffe_dns.weights import save_weights
from tests.cli.harness import complaint, run_well
from tests.cli.test_pruned import write_solver
from tests.cli.test_shrink import NET
from tests.solver.harness import small_net

Capture = pytest.CaptureFixture[str]
#: With layers that --fold takes away, one of them not in place.
NORMALIZED = NET.replace(
    """layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }""",
    """layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }
layer { name: "relu" type: "ReLU" bottom: "bn" top: "bn" }""",
).replace('bottom: "conv" top: "ip"', 'bottom: "bn" top: "ip"')


def export(folder: Path, capture: Capture, *flags: str) -> Path:
    """The net of `NORMALIZED` with random weights, some of them masked, as a compact file."""
    definition, weights = folder / "net.prototxt", folder / "net.caffemodel"
    definition.write_text(NORMALIZED)
    net = load_net(definition)
    with torch.no_grad():
        net.params["conv"][1].uniform_(0.1, 0.5)
        net.params["conv"][2][[0, 3]] = 0
        net.params["ip"][2].view(3, 6, -1)[:, 5] = 0
        for blob in net.params["bn"]:
            blob.uniform_(0.5, 1.5)
    save_weights(net, weights)
    out = folder / "net.dnsz"
    model = ["--model", str(definition), "--weights", str(weights)]
    run_well(["export", *model, "--output", str(out), *flags], capture)
    return out


@pytest.mark.parametrize("flags", [[], ["--shrink"], ["--fold"], ["--fold", "--shrink"]])
def test_the_net_has_the_sizes_of_the_file(
    flags: list[str], tmp_path: Path, capfd: Capture
) -> None:
    file = export(tmp_path, capfd, *flags)
    definition = tmp_path / "net.prototxt"
    given = load_net(definition, weights=tmp_path / "net.caffemodel")()
    net = load_net(definition, weights=file, surgery=False)
    assert net.blob_shapes["conv"][1] == (3 if "--shrink" in flags else 6)
    assert ("bn" in net.params) == ("--fold" not in flags)
    actual = net()
    for blob in ("ip", "loss", "accuracy"):
        expected = given[blob].detach().numpy()
        np.testing.assert_allclose(actual[blob].detach(), expected, rtol=1e-5, atol=1e-6)


def test_commands(tmp_path: Path, capfd: Capture) -> None:
    file = export(tmp_path, capfd, "--shrink", "--fold")
    model = ["--model", str(tmp_path / "net.prototxt"), "--weights"]

    def score(weights: str, *flags: str) -> float:
        flags = ("--iterations", "2", *flags)
        messages = run_well(["test", *model, weights, *flags], capfd).messages
        return float(next(m.split()[2] for m in messages if m.startswith("loss = ")))

    given = score(f"{tmp_path}/net.caffemodel")
    for flags in ([], ["--shrink"], ["--fold"]):
        assert score(str(file), *flags) == pytest.approx(given, rel=1e-5)
    assert "4x3x6x6" in run_well(["summary", *model, str(file)], capfd).out
    assert "4x3x6x6" in run_well(["summary", *model, str(file), "--shrink"], capfd).out


def test_layers_that_shared_weights_until_they_were_shrunk(tmp_path: Path, capfd: Capture) -> None:
    """Each has another part now, in the definition that trains and scores as well."""
    ip = 'layer {{ name: "{0}" type: "InnerProduct" bottom: "{1}" top: "{0}" {2} }}'
    shared = 'param { name: "w" } param { name: "b" } inner_product_param { num_output: 6 }'
    own = "inner_product_param { num_output: 3 }"
    sums = 'layer { name: "ip" type: "Eltwise" bottom: "c" bottom: "d" top: "ip" }'
    names = [("a", "data", shared), ("b", "data", shared), ("c", "a", own), ("d", "b", own)]
    head, _, rest = NET.partition('layer { name: "conv"')
    loss = rest[rest.index('layer { name: "loss"') :]
    definition, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    layers = "".join(ip.format(*name) for name in names) + sums
    definition.write_text(head + layers + loss)
    net = load_net(definition, surgery=False)
    with torch.no_grad():
        for layer in ("a", "c", "d"):
            for blob in net.params[layer]:
                blob.uniform_(-1, 1)
        net.params["c"][0][:, :4] = 0
        net.params["d"][0][:, 3:] = 0
    save_weights(net, weights)
    model = ["--model", str(definition), "--weights"]
    small = tmp_path / "net.dnsz"
    run_well(["export", *model, str(weights), "--shrink", "--output", str(small)], capfd)
    given = load_net(definition, weights=weights, surgery=False)()["ip"].detach().numpy()
    shrunk = load_net(definition, weights=small, surgery=False)
    assert (shrunk.blob_shapes["a"][1], shrunk.blob_shapes["b"][1]) == (2, 3)
    np.testing.assert_allclose(shrunk()["ip"].detach(), given, rtol=1e-5, atol=1e-6)


def test_training_goes_on_from_one(tmp_path: Path, capfd: Capture) -> None:
    train = write_solver(tmp_path, small_net())
    run_well([*train, "--target-sparsity", "0.8"], capfd)
    plain = ["--model", f"{tmp_path}/snap_pruned.prototxt"]
    plain += ["--weights", f"{tmp_path}/snap_pruned.caffemodel"]
    compact = f"{tmp_path}/net.dnsz"
    run_well(["export", *plain, "--output", compact], capfd)
    flags = ["--weights", compact, "--masks-from-zeros", "--hold-masks"]
    messages = run_well([*train, *flags], capfd).messages
    assert f"Finetuning from {compact}" in messages
    assert any(message.startswith("The masks keep ") for message in messages)


def test_damaged_files(tmp_path: Path, capfd: Capture) -> None:
    file = export(tmp_path, capfd)
    file.write_bytes(file.read_bytes()[:-1])
    model = ["--model", str(tmp_path / "net.prototxt"), "--weights", str(file)]
    for command in (["test", "--iterations", "1"], ["summary"], ["summary", "--shrink"]):
        assert "net.dnsz: is damaged" in complaint([*command, *model], capfd)


def test_shared_values(tmp_path: Path, capfd: Capture) -> None:
    size = export(tmp_path, capfd, "--shrink", "--fold").stat().st_size
    file = export(tmp_path, capfd, "--shrink", "--fold", "--bits", "4")
    assert file.read_bytes()[4] == 3
    assert file.stat().st_size < size / 2
    net = load_net(tmp_path / "net.prototxt", weights=file, surgery=False)
    for name in ("conv", "ip"):
        flat = torch.cat([blob.detach().flatten() for blob in net.params[name][:2]])
        assert 4 < len(flat[flat != 0].unique()) <= 16
    model = ["--model", str(tmp_path / "net.prototxt"), "--weights", str(file)]
    run_well(["test", *model, "--iterations", "1"], capfd)
    again = tmp_path / "again.dnsz"
    run_well(["export", "--weights", str(file), "--output", str(again)], capfd)
    assert again.read_bytes() == file.read_bytes()
    for bits in ("1", "9", "x"):
        assert "--bits" in complaint(
            ["export", *model, "--output", "o.dnsz", "--bits", bits], capfd
        )
