"""Reads the settings of convolutions that are given once for each spatial axis."""

from __future__ import annotations

from caffe_dns.layers.base import Layer

#: Caffe keeps these numbers, which files have without a sign, in an `int`.
MOST = 2**31 - 1


#: Synopsys' fields for a padding of each side, and each side's place in what `F.pad` takes.
SIDES = ("pad_l", "pad_r", "pad_t", "pad_b")


def sides(layer: Layer, within: str, least: int = 0) -> tuple[int, ...]:
    """The padding of the left, right, top and bottom from pad_l, pad_r, pad_t and pad_b.

    They are `within` that message of the layer. All are 0 where nothing is said of the sides.
    Raises CaffeError for values below `least` or beyond an `int`, and for another padding beside
    them (`base_conv_layer.cpp` and `pooling_layer.cpp` of Synopsys).
    """
    settings = getattr(layer.param, within)
    values = tuple(getattr(settings, name) for name in SIDES)
    if not any(values):
        return values
    given = {field.name for field, _ in settings.ListFields()}
    if others := given & {"pad", "pad_h", "pad_w"}:
        raise layer.error(
            f"give either {min(others)} or the padding of each side, not both", f"{within}.pad_l"
        )
    for name, value in zip(SIDES, values, strict=True):
        if not least <= value <= MOST:
            raise layer.error(f"must be at least {least} and at most {MOST}", f"{within}.{name}")
    return values


def missing(padded: int, reach: int, stride: int) -> int:
    """How many zeros belong behind a padded axis that a kernel exceeds by less than its stride.

    Caffe has one output then, as C++ divides towards zero, and what lies beyond the input counts
    as zero (`conv_layer.cpp`, `im2col_layer.cpp`, `util/im2col.cpp`). 0 for all other kernels.
    """
    return max(reach - padded, 0) if reach - padded < stride else 0


def spatial_setting(
    layer: Layer,
    num_spatial_axes: int,
    field: str,
    pair: tuple[str, str] | None = None,
    default: int | None = None,
    least: int = 1,
    within: str = "convolution_param",
) -> tuple[int, ...]:
    """A setting for each spatial axis, from the repeated `field` or from the _h and _w `pair`.

    Both are `within` that message of the layer. The field may stand once for all axes, or once for
    each; without it `default` holds for all. Raises CaffeError for another number of values and for
    values below `least` or beyond an `int` (`base_conv_layer.cpp`, `im2col_layer.cpp`).
    """
    settings = getattr(layer.param, within)
    values: list[int] = list(getattr(settings, field))
    place = f"{within}.{field}"
    if pair and any(settings.HasField(name) for name in pair):
        if num_spatial_axes != 2:
            raise layer.error(f"{pair[0]} and {pair[1]} are for 2 spatial axes only", place)
        if values:
            raise layer.error(f"give either {field} or {pair[0]} and {pair[1]}, not both", place)
        values = [getattr(settings, name) for name in pair]
    elif not values and default is not None:
        values = [default]
    if len(values) not in (1, num_spatial_axes):
        raise layer.error(
            f"given {len(values)} times; once, or once for each of the {num_spatial_axes} spatial "
            "axes, would be right",
            place,
        )
    if any(value < least for value in values):
        raise layer.error(f"must be at least {least}", place)
    if max(values, default=0) > MOST:
        raise layer.error(f"must be at most {MOST}", place)
    return tuple(values * num_spatial_axes if len(values) == 1 else values)
