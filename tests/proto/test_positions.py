from caffe_dns.proto.caffe_pb2 import NetParameter, SolverParameter
from caffe_dns.proto.text import parse_text

NET = """name: "net"
# layer { name: "not this one" }
layer {
  name: "data }"
  top: "data" top: "label"
}

layer { name: "conv"
  convolution_param {
    num_output: 3 kernel_size: 5
    kernel_size:
      7
    weight_filler < type: "xavier" >
  }
  param { lr_mult: 1 }
  param {
    lr_mult: 2
  }
}
layer [ { name: "a" },
  { name: "b" } ]
"""


def test_layers_are_counted_in_file_order() -> None:
    positions = parse_text(NET, NetParameter).positions
    assert [positions.layer_line(index) for index in range(4)] == [3, 8, 20, 21]
    assert positions.layer_line(4) is None
    assert positions.layer_line(-1) is None


def test_fields_of_a_layer() -> None:
    positions = parse_text(NET, NetParameter).positions
    assert positions.field_line(0, "name") == 4
    assert positions.field_line(0, "top[1]") == 5
    assert positions.field_line(1, "convolution_param") == 9
    assert positions.field_line(1, "convolution_param.kernel_size") == 10
    assert positions.field_line(1, "convolution_param.kernel_size[1]") == 11
    assert positions.field_line(1, "convolution_param.weight_filler.type") == 13
    assert positions.field_line(1, "param[1].lr_mult") == 17
    assert positions.field_line(3, "name") == 21


def test_what_is_not_written_has_no_line() -> None:
    positions = parse_text(NET, NetParameter).positions
    assert positions.field_line(1, "convolution_param.pad") is None
    assert positions.field_line(1, "param[2].lr_mult") is None
    assert positions.field_line(9, "name") is None
    assert positions.line("state.phase") is None


def test_paths_from_the_root() -> None:
    text = 'base_lr: 0.1\nnet_param {\n  layer { name: "a" }\n  layer {\n    name: "b"\n  }\n}\n'
    positions = parse_text(text, SolverParameter).positions
    assert positions.line("base_lr") == 1
    assert positions.line("net_param.layer[1].name") == 5
    assert positions.layer_line(0) is None


def test_old_nets_count_their_layers_entries() -> None:
    text = "layers { type: RELU }\nlayers {\n type: DATA }"
    positions = parse_text(text, NetParameter).positions
    assert [positions.layer_line(index) for index in range(2)] == [1, 2]
    assert positions.field_line(1, "type") == 3


def test_layers_that_come_and_go_in_an_upgrade() -> None:
    positions = parse_text(NET, NetParameter).positions
    positions.remove_layers({1, 2})
    positions.insert_layer()
    assert [positions.layer_line(index) for index in range(4)] == [None, 3, 21, None]
