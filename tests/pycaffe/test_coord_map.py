"""caffe.coord_map: where the pixels of one blob lie in another."""

from __future__ import annotations

import numpy as np
import pytest

import caffe_dns.pycaffe as caffe
from caffe_dns.errors import CaffeError
from caffe_dns.pycaffe import layers as L
from caffe_dns.pycaffe.coord_map import (
    AxisMismatchException,
    CropError,
    UndefinedMapException,
    compose,
    coord_map,
    coord_map_from_to,
    crop,
    inverse,
)
from caffe_dns.pycaffe.net_spec import Top


def data(*shape: int) -> Top:
    top: Top = L.Input(shape={"dim": list(shape or (2, 3, 60, 60))})
    return top


def centre_of_window(x: float, kernel: int, stride: int, pad: int, dilation: int) -> float:
    """The middle of the bottom's pixels that make pixel x of a convolution."""
    return float(np.mean(x * stride - pad + dilation * np.arange(kernel)))


@pytest.mark.parametrize(("kernel", "stride", "pad", "dilation"), [(3, 1, 0, 1), (5, 2, 3, 2)])
def test_a_convolutions_pixels_lie_in_the_middle_of_their_windows(
    kernel: int, stride: int, pad: int, dilation: int
) -> None:
    settings = {"kernel_size": kernel, "stride": stride, "pad": pad, "dilation": dilation}
    bottom = data()
    for top in (
        L.Convolution(bottom, **settings),
        L.Convolution(bottom, convolution_param=settings),
    ):
        axis, scale, shift = coord_map_from_to(top, bottom)
        assert axis == 1
        for x in (0, 4):
            wanted = centre_of_window(x, kernel, stride, pad, dilation)
            assert scale * x + shift == pytest.approx(wanted)
    back = coord_map_from_to(bottom, top)
    assert back.scale * (scale * 4 + shift) + back.shift == pytest.approx(4)


def test_a_deconvolution_goes_the_way_back() -> None:
    bottom = data()
    up = L.Deconvolution(
        L.Convolution(bottom, kernel_size=6, stride=3, pad=2), kernel_size=6, stride=3, pad=2
    )
    assert coord_map_from_to(up, bottom) == (1, 1, 0)


def test_layers_that_change_nothing_and_crops() -> None:
    bottom = data()
    crop_of = L.Crop(L.ReLU(L.LRN(bottom)), data(2, 3, 50, 50), axis=2, offset=[4, 7])
    axis, scale, shift = coord_map_from_to(crop_of, bottom)
    assert (axis, scale) == (1, 1) and shift.tolist() == [4, 7]
    with pytest.raises(CaffeError, match="no ancestor in common"):
        coord_map_from_to(crop_of, crop_of.fn.inputs[1])  # whose size alone counts


def test_three_axes() -> None:
    bottom = data(1, 1, 9, 9, 9)
    top = L.Pooling(L.Convolution(bottom, kernel_size=3, pad=[0, 1, 2]), kernel_size=2, stride=2)
    assert coord_map_from_to(top, bottom).shift.tolist() == [1.5, 0.5, -0.5]


def test_crops() -> None:
    net = caffe.NetSpec()
    net.data = data(1, 1, 40, 40)
    net.conv = L.Convolution(net.data, kernel_size=4, stride=2, pad=5, num_output=1)
    net.up = L.Deconvolution(
        net.conv, convolution_param={"kernel_size": 4, "stride": 2, "num_output": 1}
    )
    net.cut = crop(net.up, net.data)
    layer = net.to_proto().layer[-1]
    assert (layer.type, layer.crop_param.axis, list(layer.crop_param.offset)) == ("Crop", 2, [5])
    net.same = crop(L.ReLU(net.data), net.data)
    assert (net.to_proto().layer[-1].crop_param.axis) == 2


@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "message"),
    [
        (3, 2, 0, r"different scale: \[0.5\]"),
        (3, 1, 0, r"outside of the blob: the offset is \[-1.\]"),
        (2, 1, 1, r"between pixels: the offset is \[0.5\]"),
    ],
)
def test_what_is_no_crop(kernel: int, stride: int, pad: int, message: str) -> None:
    bottom = data()
    top = L.Convolution(bottom, kernel_size=kernel, stride=stride, pad=pad)
    with pytest.raises(CropError, match=message):
        crop(top, bottom) if stride == 1 else crop(bottom, top)
    with pytest.raises(AssertionError):  # as programs expect it
        crop(top, bottom) if stride == 1 else crop(bottom, top)


def test_maps_that_are_not_there() -> None:
    bottom = data()
    with pytest.raises(RuntimeError, match="no ancestor in common"):
        coord_map_from_to(L.InnerProduct(bottom, num_output=2), bottom)
    with pytest.raises(UndefinedMapException, match="Softmax"):
        coord_map(L.Softmax(bottom).fn)
    with pytest.raises(UndefinedMapException, match="Pooling without kernel_size"):
        coord_map(L.Pooling(bottom, global_pooling=True).fn)
    with pytest.raises(AssertionError, match="do not support kernel_h"):
        coord_map(L.Convolution(bottom, kernel_h=3, kernel_w=2).fn)
    first, second = (
        coord_map(L.Convolution(bottom, kernel_size=3, axis=axis).fn) for axis in (1, 2)
    )
    with pytest.raises(AxisMismatchException, match="1 and 2"):
        compose(first, second)
    assert inverse(inverse(first)) == first
