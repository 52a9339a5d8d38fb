"""python -m caffe_dns.pycaffe: programs whose `import caffe` gives ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from caffe_dns.pycaffe.__main__ import main
from tests.processes import run_python

PROGRAM = """
import sys
import caffe, helper
import caffe.draw, caffe.coord_map, caffe.pycaffe, caffe._caffe, caffe.detector
from caffe.proto import caffe_pb2
assert __name__ == '__main__'
net = caffe.Net('net.prototxt', caffe.TEST)
print(caffe.__name__, sys.argv, helper.NAME, net.forward()['y'].tolist())
sys.exit(int(sys.argv[1]))
"""
NET = """
layer { name: 'in' type: 'DummyData' top: 'x' dummy_data_param { shape { dim: 2 }
  data_filler { value: 3 } } }
layer { name: 'times' type: 'Python' bottom: 'x' top: 'y'
  python_param { module: 'helper' layer: 'Times' } }"""
HELPER = """
import caffe
NAME = 'beside the program'
class Times(caffe.Layer):
    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)
    def forward(self, bottom, top):
        top[0].data[...] = 2 * bottom[0].data
    def backward(self, top, propagate_down, bottom):
        pass
"""


def test_programs(tmp_path: Path) -> None:
    Path("programs").mkdir()
    Path("programs/program.py").write_text(PROGRAM)
    Path("programs/helper.py").write_text(HELPER)
    Path("net.prototxt").write_text(NET)
    words = ["-m", "caffe_dns.pycaffe", "programs/program.py", "3", "--flag"]
    done = run_python(*words, GLOG_minloglevel="2")
    assert done.stderr == ""
    assert done.stdout == (
        "caffe_dns.pycaffe ['programs/program.py', '3', '--flag'] beside the program [6.0, 6.0]\n"
    )
    assert done.returncode == 3


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["nowhere.py"], "caffe_dns.pycaffe: there is no file 'nowhere.py'"),
        ([], "usage: python -m caffe_dns.pycaffe script.py [args]"),
    ],
)
def test_no_program(words: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["caffe_dns.pycaffe", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == wanted  # which Python prints, and ends with 1
