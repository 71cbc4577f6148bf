"""Export of networks to ONNX or torch.export; an export is kept only if it computes the same as the network."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..errors import UsageError, brief_reason, warn_caller
from ..evaluation.finite import finite_outputs, refuse_faulty_weights
from ..folder_lock import locked
from ..models.backbones import input_channels
from ..models.image_processing_msctr import MsctrImageProcessor, MsctrImageProcessorPil
from ..new_folder import written_whole

LARGEST_DIFFERENCE = 1e-4  # between logits, relative to the largest one if that is above 1
_REQUIRED_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
_FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
# Sizes of the example, and of a small and a large comparison, in units of the size multiple. An export contains the
# steps that its example took. Windows of 4, 7, 8 and 12 pixels all pad this example in every stage, so that the export
# also pads other sizes, even if by zero pixels; if the example needed no padding, the step would be missing.
_EXAMPLE_AND_COMPARED = ((11, 13), (6, 9), (12, 14))

Size = tuple[int, int]  # height, width


class Comparison(NamedTuple):
    """Difference between an exported network and the original, on one random batch.

    Args:
        batch (`int`): Number of images.
        size (`tuple[int, int]`): Height and width of the images, in pixels.
        difference (`float`): Largest absolute difference between logits.
        largest (`float`): Largest absolute logit.
    """

    batch: int
    size: Size
    difference: float
    largest: float


def export_network(
    model: PreTrainedModel,
    image_processor: Any,
    output_dir: str | Path,
    *,
    format: str = "onnx",
    size_multiple: int = 1,
    fixed_size: Size | None = None,
) -> list[Comparison]:
    """Export a network with its image processor, for any batch size, height and width.

    Any ONNX runtime runs model.onnx: input `pixel_values` (B, C, H, W), output `logits`. `torch.export.load` loads
    model.pt2 in a program that has imported msctr_hf; `code_to_run` returns the lines for either.

    A `torch.export` program is a pickle, which can run any code when it is loaded: load only programs that you
    exported yourself or whose author you trust, and share ONNX files, which contain no code.

    Args:
        model (`PreTrainedModel`): Network, in evaluation mode and on the CPU.
        image_processor: Image processor that is saved with the network; one of this package then pads images to
            multiples of `size_multiple` as well. A warning says where images must be resized otherwise.
        output_dir (`str` or `Path`): New folder for the export.
        format (`str`): `"onnx"`, or `"torch"` (a `torch.export` program, which is a pickle).
        size_multiple (`int`): Number of which heights and widths must be multiples. Window transformers need 32, since
            their padding depends on the size of the image, which an exported program cannot express.
        fixed_size (`tuple[int, int]`, *optional*): Export for this height and width only, in pixels.

    Returns:
        `list[Comparison]`: differences from the original network at two batch sizes and, unless the size is fixed, at
        two sizes other than that of the example.

    Raises:
        UsageError: If the folder cannot be written, a package is missing, weights or logits are not finite, the
            network cannot be exported, or the export differs from it; no folder is left behind then.
    """
    output_dir = Path(output_dir)
    refuse_faulty_weights(model)
    missing = [name for name in _REQUIRED_PACKAGES[format] if importlib.util.find_spec(name) is None]
    if missing or importlib.util.find_spec("transformers.exporters") is None:
        raise UsageError("Exporting needs more packages: pip install 'msctr_hf[export]'.")
    with locked(output_dir), written_whole(output_dir, "output_dir", last=_FILES[format]) as partial:
        example, compared = _shapes(size_multiple, fixed_size)
        with _quietly():
            exported = _export(model, example, format, _free_sides(size_multiple, fixed_size))
            comparisons = [_compare(model, exported, batch, size) for batch, size in compared]
            for comparison in comparisons:
                _refuse_difference(comparison)
            exported.save_pretrained(partial)
            _for_sizes(image_processor, size_multiple, fixed_size).save_pretrained(partial)
    return comparisons


def code_to_run(output_dir: str | Path, format: str, size: Size, num_channels: int = 3) -> str:
    """Return lines of Python that run an exported network, on zeros in place of images.

    Args:
        output_dir (`str` or `Path`): Folder of the export.
        format (`str`): Format of the export, `"onnx"` or `"torch"`.
        size (`tuple[int, int]`): Height and width of the zeros, in pixels.
        num_channels (`int`): Number of channels that the network reads.
    """
    images = f"(1, {num_channels}, {size[0]}, {size[1]})"
    path = str(Path(output_dir) / _FILES[format])
    if format == "onnx":
        return (
            "import numpy, onnxruntime\n"
            f"session = onnxruntime.InferenceSession({path!r})\n"
            f'pixel_values = numpy.zeros({images}, "float32")  # images that the image processor has prepared\n'
            'logits = session.run(["logits"], {"pixel_values": pixel_values})[0]'
        )
    return (
        "import msctr_hf, torch  # msctr_hf, since the program returns one of its classes\n"
        f"program = torch.export.load({path!r}).module()  # a pickle: load only what you trust\n"
        f"pixel_values = torch.zeros{images}  # images that the image processor has prepared\n"
        "logits = program(pixel_values=pixel_values).logits"
    )


def _for_sizes(image_processor: Any, size_multiple: int, fixed_size: Size | None) -> Any:
    """Return an image processor that prepares sizes which the export accepts, or warn that it does not."""
    ours = isinstance(image_processor, (MsctrImageProcessor, MsctrImageProcessorPil))
    if ours and fixed_size is None:
        image_processor = copy.copy(image_processor)
        image_processor.size_divisor = math.lcm(image_processor.size_divisor, size_multiple)
        return image_processor
    resized = (
        dict(getattr(image_processor, "size", None) or {}) if getattr(image_processor, "do_resize", False) else {}
    )
    sides = tuple(resized.get(name) for name in ("height", "width"))
    if fixed_size is not None:
        fits, needed = sides == tuple(fixed_size), f"exactly {fixed_size[0]} x {fixed_size[1]} pixels"
    else:
        fits = None not in sides and all(side % size_multiple == 0 for side in sides)
        needed = f"multiples of {size_multiple} pixels"
    if not fits and (fixed_size is not None or size_multiple > 1):
        warn_caller(
            f"The export accepts images of {needed} only, which the image processor that is saved with it does not "
            "ensure: resize or pad images first."
        )
    return image_processor


def _shapes(size_multiple: int, fixed_size: Size | None) -> tuple[Size, list[tuple[int, Size]]]:
    """Choose the size of the example, and the (batch, size) of every comparison."""
    if fixed_size is not None:
        return fixed_size, [(1, fixed_size), (3, fixed_size)]
    if size_multiple == 1:
        return (224, 288), [(1, (160, 192)), (3, (195, 310))]
    example, small, large = (
        (rows * size_multiple, columns * size_multiple) for rows, columns in _EXAMPLE_AND_COMPARED
    )
    return example, [(1, small), (3, large)]


def _free_sides(size_multiple: int, fixed_size: Size | None) -> dict[int, Any]:
    """Return the dynamic dimensions of `pixel_values`."""
    dim = torch.export.Dim
    if fixed_size is not None:
        return {0: dim("batch")}
    if size_multiple == 1:
        return {0: dim.AUTO, 2: dim.AUTO, 3: dim.AUTO}
    return {0: dim("batch"), 2: size_multiple * dim("rows"), 3: size_multiple * dim("columns")}


def _export(model: PreTrainedModel, size: Size, format: str, free_sides: dict[int, Any]) -> Any:
    if format == "onnx":
        from transformers.exporters.exporter_onnx import OnnxConfig as Config
        from transformers.exporters.exporter_onnx import OnnxExporter as Exporter
    else:
        from transformers.exporters.exporter_dynamo import DynamoConfig as Config  # type: ignore[assignment]
        from transformers.exporters.exporter_dynamo import DynamoExporter as Exporter  # type: ignore[assignment]
    inputs = {"pixel_values": _random_images(model, 2, size, seed=0)}
    try:
        return Exporter().export(model, inputs, Config(dynamic=True, dynamic_shapes={"pixel_values": free_sides}))
    except Exception as error:  # tracing, translation and optimization raise many kinds of exceptions
        raise UsageError(_advice(f"{type(model).__name__} cannot be exported", error)) from error


def _random_images(model: PreTrainedModel, batch: int, size: Size, seed: int) -> torch.Tensor:
    return torch.randn(batch, input_channels(model.config), *size, generator=torch.Generator().manual_seed(seed))


def _compare(model: PreTrainedModel, exported: Any, batch: int, size: Size) -> Comparison:
    pixel_values = _random_images(model, batch, size, seed=1)
    with torch.no_grad():
        expected = finite_outputs(model(pixel_values=pixel_values).logits, model.dtype)
        try:
            logits = torch.as_tensor(exported(pixel_values=pixel_values)["logits"])
        except Exception as error:
            raise UsageError(_advice(f"The exported network fails at batch {batch}, size {size}", error)) from error
    if logits.shape != expected.shape:
        raise UsageError(
            _advice(f"The exported network returns logits {tuple(logits.shape)} instead of {tuple(expected.shape)}")
        )
    return Comparison(batch, size, (logits - expected).abs().max().item(), expected.abs().max().item())


def _refuse_difference(comparison: Comparison) -> None:
    if not comparison.difference <= LARGEST_DIFFERENCE * max(1.0, comparison.largest):
        raise UsageError(
            _advice(f"Logits of the exported network differ by {comparison.difference:.2g} at size {comparison.size}")
        )


def _advice(what: str, error: Exception | None = None) -> str:
    reason = "" if error is None else f" ({brief_reason(error)})"
    return f"{what}{reason}; try `size_multiple=32`, or a `fixed_size`."


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hide the progress of the exporters, and their messages about operators that the network does not use."""
    torch_logger = logging.getLogger("torch.onnx")
    before, verbosity = torch_logger.level, transformers_logging.get_verbosity()
    torch_logger.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        torch_logger.setLevel(before)
        transformers_logging.set_verbosity(verbosity)
