"""Export a network to ONNX or torch.export, and compare it with itself at sizes that the export has not seen.

    python scripts/export.py --model runs/quickstart --output_dir exported
    python scripts/export.py --model runs/swin --output_dir exported --size_multiple 32

Run it with `transformers.exporters.ExportedModel.from_pretrained("exported")(pixel_values=...)`, or with any
ONNX runtime. Nothing is written where the two differ.
"""

import sys
from pathlib import Path

# this folder's evaluate.py would hide the package of that name
sys.path = [folder for folder in sys.path if folder != str(Path(__file__).resolve().parent)]

from transformers.utils import logging

from msctr_hf.arguments import ExportArguments, exit_with_a_sentence, parse_arguments
from msctr_hf.evaluation.predictor import Protocol, load_predictor
from msctr_hf.hub.export import export_network


def main() -> None:
    logging.disable_progress_bar()
    (arguments,) = parse_arguments([ExportArguments], description=__doc__)
    network = load_predictor(arguments.model, Protocol(), device="cpu")
    comparisons = export_network(
        network.model,
        network.image_processor,
        arguments.output_dir,
        format=arguments.format,
        size_multiple=arguments.size_multiple,
        fixed_size=arguments.fixed_size and tuple(arguments.fixed_size),
    )
    print("batch, height, width   largest difference   largest logit")
    for batch, (height, width), difference, largest in comparisons:
        print(f"{batch:5} {height:7} {width:6}   {difference:18.2g}   {largest:13.3g}")
    print(f"the exported network is in {arguments.output_dir}")


if __name__ == "__main__":
    exit_with_a_sentence(main)
