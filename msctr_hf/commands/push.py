"""Push a trained model to the Hub, with a model card that is written from the files of its run.

msctr push --model runs/hrnet --hub_model_id USER/NAME

It publishes weights (model.safetensors, or the files of its index; projection_head.safetensors; an adapter of PEFT),
config.json, the image processor, the code that these two name (.py), README.md, results.json of the run, and
predictions.png if the images of the data set may be shown to everyone, or with --hub_images. Everything else in the
folder stays private: run.json, which contains paths of this machine, banks of embeddings, checkpoints, files of yours.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..hub.settings import PushSettings
from .command_line import CommandLine


def main(argv: Sequence[str]) -> None:
    """Run `msctr push` with the arguments that follow it on the command line."""
    CommandLine([PushSettings], __doc__, "push").run(argv, _push)


def _push(arguments: PushSettings) -> None:
    from ..hub.publishing import Destination, publish, spec_of_run

    print(publish(arguments.model, spec_of_run(arguments.model), Destination.from_settings(arguments)))
