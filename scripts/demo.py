"""A page that labels your pictures and shows which pixels the network takes for alike.

    python scripts/demo.py --model runs/quickstart           # then open http://127.0.0.1:7860

As a Space of the Hub: this file as app.py, `msctr_hf[demo]` in requirements.txt, the variable MSCTR_MODEL = USER/NAME.
"""

import sys
from pathlib import Path

# this folder's evaluate.py would hide the package of that name
sys.path = [folder for folder in sys.path if folder != str(Path(__file__).resolve().parent)]

import os
import tempfile
from dataclasses import dataclass, field

from transformers.utils import logging

from msctr_hf.arguments import exit_with_a_sentence, parse_arguments
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.demo_page import build_page, example_pictures, launch
from msctr_hf.evaluation.predictor import Protocol, load_predictor


@dataclass
class DemoArguments:
    """Which network is shown, and where."""

    model: str = field(
        default=os.environ.get("MSCTR_MODEL", ""),
        metadata={"help": "Saved folder or Hub id of any AutoModelForSemanticSegmentation; or set MSCTR_MODEL."},
    )
    examples: str | None = field(default=None, metadata={"help": "Folder with pictures to pick from."})
    port: int = field(default=7860, metadata={"help": "Port of the page."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; the best there is by default."})


def main() -> None:
    logging.disable_progress_bar()
    (arguments,) = parse_arguments([DemoArguments], description=__doc__)
    if not arguments.model:
        raise UsageError("Say which network is shown: --model FOLDER, or a Hub id.")
    predictor = load_predictor(arguments.model, Protocol(), device=arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        examples = example_pictures(arguments.examples, predictor.model.config, folder)
        launch(build_page(predictor, Path(arguments.model).name, examples), arguments.port)


if __name__ == "__main__":
    exit_with_a_sentence(main)
