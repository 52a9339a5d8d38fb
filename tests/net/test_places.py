"""Where in its definition something is wrong: the line of the setting, if it stands there."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns import load_net
from caffe_dns.errors import CaffeError

NET = """
layer {
  name: "in" type: "Input" top: "data"
  input_param { shape { dim: 2 dim: 3 dim: 5 dim: 5 } }
}
layer {
  name: "conv"
  type: "Convolution"
  bottom: "data"
  top: "conv"
  convolution_param {
    num_output: 2
    kernel_size: 3
  }
}
"""
DATA = """layer {
  name: "data" type: "Data" top: "data"
  data_param {
    source: "gone"
    batch_size: 1
  }
}
"""


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("kernel_size: 3", "kernel_size: 6", "13: layer 'conv': convolution_param.kernel_size"),
        # What is missing is missing in the layer's settings, or in the layer.
        ("num_output: 2", "", "11: layer 'conv': convolution_param.num_output"),
        ("batch_size: 1", "", "3: layer 'data': data_param.batch_size"),
        ('bottom: "data"', 'bottom: "dota"', "6: layer 'conv': bottom"),
    ],
)
def test_the_line_is_that_of_the_setting(old: str, new: str, place: str, tmp_path: Path) -> None:
    file = tmp_path / "net.prototxt"
    file.write_text((DATA if "batch" in old else NET).replace(old, new))
    with pytest.raises(CaffeError) as caught:
        load_net(file)
    assert str(caught.value).startswith(f"{file}:{place}: ")


def test_of_another_file_both_places_are_told(tmp_path: Path) -> None:
    file = tmp_path / "net.prototxt"
    file.write_text(NET + DATA)
    with pytest.raises(CaffeError) as caught:
        load_net(file)
    assert str(caught.value) == (f"gone: layer 'data': there is no such database ({file}:16)")
