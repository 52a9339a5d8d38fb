"""What pycaffe sets for the whole process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import caffe_dns.pycaffe as caffe
from caffe_dns.errors import CaffeError
from caffe_dns.pycaffe import mode

NET = """layer { name: 'noise' type: 'DummyData' top: 'noise'
    dummy_data_param { shape { dim: 5 } data_filler { type: 'gaussian' } } }"""


def noise() -> np.ndarray:
    Path("net.prototxt").write_text(NET)
    return caffe.Net("net.prototxt", caffe.TEST).forward()["noise"]


def test_seeds() -> None:
    assert not np.array_equal(noise(), noise())
    caffe.set_random_seed(3)
    first, second = noise(), noise()
    assert not np.array_equal(first, second)  # the generator goes on, as in Caffe
    caffe.set_random_seed(3)
    assert np.array_equal(first, noise()) and np.array_equal(second, noise())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu() -> None:
    caffe.set_mode_cpu()
    for call in (caffe.set_mode_gpu, lambda: caffe.set_device(1)):
        with pytest.raises(CaffeError, match=r"there is no GPU [01] that PyTorch can use"):
            call()
    assert noise().shape == (5,)


def test_log_levels(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    caffe.init_log()
    noise()
    caffe.log("told")
    with pytest.raises(CaffeError, match="the log goes to stderr"):
        caffe.init_log(0, False)
    printed = capfd.readouterr().err
    assert "Creating layer noise" in printed and "mode.py" in printed and "] told" in printed
    monkeypatch.setenv("GLOG_minloglevel", "2")
    mode.heed_environment()
    noise()
    caffe.log("not told")
    assert not capfd.readouterr().err


def test_layer_types() -> None:
    assert {"Data", "Convolution", "Python", "CInnerProduct"} <= set(caffe.layer_type_list())
