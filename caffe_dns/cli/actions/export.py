"""`dns export`."""

from __future__ import annotations

from pathlib import Path

from caffe_dns.cli import definitions, flags
from caffe_dns.cli.bits import BitsFlag, Scoring, find_limit, share
from caffe_dns.cli.output import Output, with_output
from caffe_dns.encoding import encode
from caffe_dns.errors import CaffeError
from caffe_dns.export import compact
from caffe_dns.export.deploy import Deployment
from caffe_dns.export.formats import export_formats, find_format, size_table
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.files import check_target, write_atomically
from caffe_dns.layers.base import Context
from caffe_dns.weights.compact import is_compact

#: Formats that hold weights, and not in which net.
_WITHOUT_DEFINITION = ("caffemodel", "safetensors")


@with_output
def run(
    model: str,
    weights: str,
    output_file: str,
    format_name: str,
    definition: str,
    bits: BitsFlag,
    loss: float | None,
    iterations: int,
    shrink: bool,
    fold: bool,
    batch: int,
    shape: tuple[str, ...],
    level: int,
    stage: str,
    all_losses: bool,
    allow_python_layers: bool,
    output: Output,
) -> None:
    """Do what `dns export` is asked for, by the values of its flags."""
    files = [file.strip() for file in weights.split(",")]
    _check_flags(weights, output_file, iterations)
    inputs = [model, *files]
    for target in filter(None, (output_file, definition)):
        check_target(target, inputs)
    limit = find_limit(bits, loss)
    chosen = find_format(output_file, format_name)
    if len(files) == 1 and is_compact(files[0]):
        if model and bits != flags.AUTO:
            raise CaffeError("brings its definition with it; leave --model out", file=files[0])
        plain = compact.load(files[0])
    else:
        if not model:
            raise CaffeError("export needs the definition of the weights: --model FILE")
        context = Context(allow_python_layers=allow_python_layers)
        described = definitions.read_deployment(
            model, batch, shape, level, stage, all_losses, context
        )
        plain = _load(described, weights, context)
    if shrink or fold:
        plain = definitions.reduce_model(plain, shrink=shrink, fold=fold, say=output.line)
        output.line()
        if not definition and chosen in _WITHOUT_DEFINITION:
            definition = str(Path(output_file).with_suffix(".prototxt"))
            check_target(definition, inputs)
    scoring = Scoring(model, limit, iterations, level, stage, output_file)
    plain, shared = share(plain, bits, scoring, output)
    small = compact.to_bytes(plain)
    raw = small if chosen == "compact" else export_formats[chosen].to_bytes(plain)
    write_atomically(output_file, raw)
    if definition:
        write_atomically(definition, encode(plain.definition.to_text()))
    for line in size_table(plain, files, len(small)):
        output.line(line)
    output.line(f"Wrote {output_file}: {len(raw):,} bytes")
    if definition and (shrink or fold):
        output.line(f"Wrote {definition}, its definition")
    output.result(
        {
            "file": output_file,
            "format": chosen,
            "bytes": len(raw),
            "definition": definition or None,
            "weights": plain.total,
            "weights_kept": plain.kept,
            "compact_bytes": len(small),
            "bits": shared,
        }
    )


def _check_flags(weights: str, output_file: str, iterations: int) -> None:
    if not weights:
        raise CaffeError("export needs model weights: --weights FILE")
    if not output_file:
        raise CaffeError("export needs a file to write: --output FILE")
    flags.check_iterations(iterations)


def _load(described: Deployment, weights: str, context: Context) -> UnmaskedModel:
    try:
        return UnmaskedModel.load(described, weights, context)
    except CaffeError as error:
        raise described.places.locate(error) if described.places else error from None
