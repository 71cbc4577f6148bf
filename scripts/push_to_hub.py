"""Push a trained model to the Hub, with a card made from what its run knows.

    python scripts/push_to_hub.py --model runs/hrnet --hub_model_id USER/NAME

Weights, configuration, image processor, code, card and results.json go there. run.json, with the paths of a machine,
does not; predictions.png does where the pictures of the data set may be shown (--hub_pictures true: they may).
"""

import sys
from pathlib import Path

# this folder's evaluate.py would hide the package of that name
sys.path = [folder for folder in sys.path if folder != str(Path(__file__).resolve().parent)]

from dataclasses import dataclass, field

from transformers.utils import logging

from msctr_hf.arguments import HubArguments, exit_with_a_sentence, parse_arguments
from msctr_hf.errors import UsageError
from msctr_hf.hub.publishing import Destination, publish, spec_of_run


@dataclass
class PushArguments(HubArguments):
    """What is pushed, and where it goes."""

    model: str = field(default="", metadata={"help": "OUTPUT_DIR of a run, or another saved folder."})


def main() -> None:
    logging.disable_progress_bar()
    (arguments,) = parse_arguments([PushArguments], description=__doc__)
    if not arguments.model or not arguments.hub_model_id:
        raise UsageError("Say what is pushed and where it goes: --model FOLDER --hub_model_id USER/NAME.")
    print(publish(arguments.model, spec_of_run(arguments.model), Destination.from_arguments(arguments)))


if __name__ == "__main__":
    exit_with_a_sentence(main)
