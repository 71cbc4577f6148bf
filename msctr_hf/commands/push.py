"""Push a trained model to the Hub, with a card made from what its run knows.

msctr push --model runs/hrnet --hub_model_id USER/NAME

Weights, configuration, image processor, code, card and results.json are published. run.json, with the paths of a
machine, is not; predictions.png is where the images of the data set may be shown (--hub_images: they may).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..hub.settings import PushSettings
from .command_line import CommandLine


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    CommandLine([PushSettings], __doc__, "push").run(argv, _push)


def _push(arguments: PushSettings) -> None:
    from ..hub.publishing import Destination, publish, spec_of_run

    print(publish(arguments.model, spec_of_run(arguments.model), Destination.from_settings(arguments)))
