"""Export a network to ONNX or torch.export, and compare both at sizes that the export has not seen.

msctr export --model runs/quickstart --output_dir exported
msctr export --model runs/swin --output_dir exported --size_multiple 32

Nothing is written if the logits of both differ. The command prints the lines of Python that run the exported network:
ONNX with any ONNX runtime, without this package; a program of torch.export with torch and this package. Such a program
is a pickle, which can run code when it is loaded: load only what you trust.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..hub.settings import ExportSettings
from .command_line import CommandLine, written_to_output_dir


def main(argv: Sequence[str]) -> None:
    """Run `msctr export` with the arguments that follow it on the command line."""
    CommandLine([ExportSettings], __doc__, "export").run(argv, _export)


def _export(arguments: ExportSettings) -> None:
    from ..evaluation.predictor import load_predictor
    from ..hub.export import code_to_run, export_network

    network = load_predictor(arguments.model, device="cpu")
    with written_to_output_dir(arguments.output_dir):
        comparisons = export_network(
            network.model,
            network.image_processor,
            arguments.output_dir,
            format=arguments.format,
            size_multiple=arguments.size_multiple,
            fixed_size=None if arguments.fixed_size is None else (arguments.fixed_size[0], arguments.fixed_size[1]),
        )
    print("batch, height, width   largest difference   largest logit")
    for batch, (height, width), difference, largest in comparisons:
        print(f"{batch:5} {height:7} {width:6}   {difference:18.2g}   {largest:13.3g}")
    print(f"the exported network is in {arguments.output_dir}; this runs it:")
    print(code_to_run(arguments.output_dir, arguments.format, comparisons[0].size, network.num_channels))
