"""Reading definitions for actions that do not need the definition's data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from caffe_dns import log
from caffe_dns.cli import flags
from caffe_dns.errors import CaffeError
from caffe_dns.export.deploy import Deployment, deploy
from caffe_dns.export.inputs import ItemShape, replace_data
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.shrink import fold as fold_model
from caffe_dns.export.shrink import put_in_order
from caffe_dns.export.shrink import shrink as shrink_model
from caffe_dns.export.standard_layers import without_surgery
from caffe_dns.files.reading import is_count
from caffe_dns.layers.base import Context, Shape
from caffe_dns.net import Net
from caffe_dns.net.definition import filter_layers, with_state, without_layers
from caffe_dns.net.places import Places
from caffe_dns.net.unknown_types import check_types
from caffe_dns.proto.caffe_pb2 import TEST, NetParameter, Phase
from caffe_dns.proto.upgrade import read_net
from caffe_dns.reports.comparison import comparison, measure
from caffe_dns.weights import fit_definition, weight_files


def require_data(net: Net, file: str) -> None:
    """Raise CaffeError unless a net of that file reads its own data, as training and scoring do."""
    step = next((step for step in net.steps if step.layer.is_input), None)
    if step is not None:
        raise CaffeError(
            f"is without data: '{step.tops[0]}' comes from outside, as in a deploy.prototxt; a "
            "definition with a data layer is needed, such as train_val.prototxt",
            file=file,
            layer=step.layer.name,
        )


def read_deployment(
    model: str,
    batch: int,
    shape: Sequence[str],
    level: int,
    stage: str,
    all_losses: bool,
    context: Context,
) -> Deployment:
    """The definition in the file `model`, for deployment; arguments are the flags' values."""
    if not 1 <= batch < 2**31:
        raise CaffeError(f"--batch must be from 1 to 2147483647, not {batch}")
    shapes = parse_shapes(shape)
    parsed = read_net(model)
    stages = flags.stages(stage)
    places = Places.of(parsed, with_state(parsed.message, TEST, level, stages))
    with log.silenced:
        try:
            return deploy(
                parsed.message,
                batch=batch,
                shapes=shapes,
                level=level,
                stages=stages,
                all_losses=all_losses,
                context=context,
                places=places,
            )
        except CaffeError as error:
            raise places.locate(error) from None


def load_unmasked(
    model: str, weights: str, shapes: Sequence[ItemShape], level: int, stage: str, context: Context
) -> tuple[NetParameter, UnmaskedModel]:
    """The definition in the file `model` for a test, and a model of it with inputs for its data."""
    with log.silenced:
        param, given, places = read_with_inputs(model, weights, TEST, shapes, level, stage, context)
        plain = without_layers(given)
        plain.layer.extend(without_surgery(layer) for layer in given.layer)
        try:
            return param, UnmaskedModel.load(Deployment(plain), weights, context)
        except CaffeError as error:
            raise places.locate(error) from None


def read_with_inputs(
    model: str,
    weights: str,
    phase: Phase,
    shapes: Sequence[ItemShape],
    level: int,
    stage: str,
    context: Context,
) -> tuple[NetParameter, NetParameter, Places]:
    """The definition in the file `model` for a phase, with the sizes of compact weights.

    The first is the definition as it is, the second has inputs in place of its data layers.
    """
    parsed = read_net(model)
    state = with_state(parsed.message, phase, level, flags.stages(stage))
    places = Places.of(parsed, state)
    try:
        param = filter_layers(fit_definition(state, weight_files(weights) if weights else ()))[0]
        check_types(param, places)
        return param, replace_data(param, phase, shapes, context), places
    except CaffeError as error:
        raise places.locate(error) from None


def reduce_model(
    given: UnmaskedModel, *, shrink: bool, fold: bool, say: Callable[[str], None]
) -> UnmaskedModel:
    """The model reduced as the flags say; `say` is called with lines about what that saves."""
    model = given
    if fold:
        folded = fold_model(model)
        model = folded.model
        say(f"Folded into the weights before them: {', '.join(folded.layers) or 'no layer'}")
    if shrink:
        small = shrink_model(model)
        model = put_in_order(small.model)
        for line in (*small.lost, *small.held):
            say(line)
    for line in comparison(measure(given), measure(model)):
        say(line)
    return model


def parse_shapes(texts: Sequence[str]) -> list[ItemShape]:
    """Shapes from extents separated by commas, those of further tops after colons.

    Raises CaffeError for anything else.
    """
    return [tuple(_parse_shape(part) for part in text.split(":")) for text in texts]


def _parse_shape(text: str) -> Shape:
    extents = [part.strip() for part in text.replace("x", ",").split(",")]
    if not all(is_count(part) and int(part) > 0 for part in extents):
        raise CaffeError(
            f"--shape '{text}': extents like 3,227,227 would be right, or, with the label's, "
            "3,500,500:1,500,500"
        )
    return tuple(int(part) for part in extents)
