"""Train a segmentation network with multi-scale and cross-scale contrast.

msctr train --config quickstart
accelerate launch -m msctr_hf train --config cityscapes/hrnet_w48 --data_dir /data/cityscapes
accelerate launch -m msctr_hf train --config cityscapes/hrnet_w48 --contrastive_mode ce   # baseline

Exit codes: 0, trained to the end; 2, wrong input or a full disk, reported in one sentence; 75, stopped by SIGTERM or
Ctrl-C after a checkpoint was saved: resume with --resume auto. Any other code is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.settings import DataSettings
from ..hub.settings import HubSettings
from ..training.settings import ModelSettings, TrainingSettings
from .command_line import CommandLine


def command_line() -> CommandLine:
    """Build the parser that has every setting of a run as a flag."""
    groups = [ModelSettings, DataSettings, TrainingSettings, HubSettings]
    return CommandLine(groups, __doc__, "train", with_network_settings=True)


def main(argv: Sequence[str]) -> None:
    """Run `msctr train` with the words that follow it on the command line."""
    command_line().run(argv, _train)


def _train(
    model_arguments: ModelSettings,
    data_arguments: DataSettings,
    arguments: TrainingSettings,
    hub_arguments: HubSettings,
    network_settings: dict[str, Any],
) -> None:
    from ..hub.publishing import Destination, Publisher
    from ..training.train import print_results, train

    destination = Destination.from_settings(hub_arguments) if hub_arguments.push_to_hub else None
    publisher = Publisher(data_arguments.spec, destination)
    try:
        results = train(model_arguments, data_arguments, arguments, network_settings, publisher)
        publisher.finish()
    finally:
        publisher.abandon()
    if results:
        print_results(results, arguments.output_dir)
