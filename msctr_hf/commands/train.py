"""Train a segmentation network with multi-scale and cross-scale contrast.

msctr train --config quickstart
accelerate launch -m msctr_hf train --config cityscapes/hrnet_w48 --data_dir /data/cityscapes
accelerate launch -m msctr_hf train --config cityscapes/hrnet_w48 --contrastive_mode ce   # baseline

Exit codes: 0, training finished; 2, wrong input or a full disk, reported in one sentence; 75, stopped by SIGTERM or
Ctrl-C after a checkpoint was saved: resume with --resume auto. Any other code is a bug.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from os import PathLike
from typing import Any

from ..data.settings import DataSettings
from ..hub.settings import HubSettings
from ..training.settings import ModelSettings, TrainingSettings
from .command_line import CommandLine
from .keywords import Keywords
from .quiet import without_bars_of_transformers

_GROUPS = (ModelSettings, DataSettings, TrainingSettings, HubSettings)
_OF_ONE_LAUNCH = {"resume", "overwrite_output_dir", "output_dir", "dry_run"}  # they say nothing about a run


def command_line() -> CommandLine:
    """Build the parser that has every setting of a run as a flag."""
    return CommandLine(_GROUPS, __doc__, "train", with_network_settings=True)


def main(argv: Sequence[str]) -> None:
    """Run `msctr train` with the arguments that follow it on the command line."""
    # the defaults alone would train the network of a paper on synthetic scenes, for weeks on a CPU
    given = {word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    if given <= _OF_ONE_LAUNCH and "-h" not in argv:
        command_line().error(
            "nothing to train: give a recipe, such as --config quickstart, or --dataset NAME; a run is resumed by its "
            "whole command and --resume auto."
        )
    command_line().run(argv, _train_and_print)


def train(config: str | PathLike | None = None, **settings: Any) -> dict[str, Any]:
    """Train a network from Python, as `msctr train --config CONFIG --SETTING VALUE ...` does.

    The run is the same as that of the command: the same checks, files, lines and weights. In a notebook, interrupting
    the cell saves a checkpoint and raises `Interrupted`; call again with `resume="auto"` to continue.

    Args:
        config (`str`, *optional*): Name of a shipped recipe (`"quickstart"`) or path of a YAML file, whose values
            replace the defaults.
        settings: Settings that the command takes as flags, as Python objects: `data_dir="/data/cityscapes"`,
            `max_steps=2000`, `crop_size=(512, 512)`. They replace the values of the recipe; `None` means the default.

    Returns:
        `dict`: Scores of the best model, as in `results.json` of `output_dir`; empty after a dry run.

    Raises:
        UsageError: If a setting is unknown or not valid, or a file cannot be read or written.
        Interrupted: If a signal stopped the run after it saved a checkpoint, from which it can be resumed.
    """
    from accelerate.state import AcceleratorState, GradientState, is_initialized

    keywords = Keywords(_GROUPS, None, "train", with_network_settings=True)
    (model, data, training, hub, network), arguments = keywords.parse_keywords(config, settings)
    was_initialized = is_initialized()
    try:
        with without_bars_of_transformers():  # every saved model would show one between the lines of the run
            return _train(model, data, training, hub, network, shlex.join(["msctr", "train", *arguments]))
    finally:
        if not was_initialized:  # otherwise the next run in this process could not use another precision
            AcceleratorState._reset_state()
            GradientState._reset_state()


def _train_and_print(*groups: Any) -> None:
    from accelerate.state import PartialState, is_initialized

    from ..training.train import print_results

    try:
        results = _train(*groups)
        if results:
            print_results(results, groups[2].output_dir)
    finally:
        # not in `train`, since a program that calls it may continue to use its process group
        if is_initialized():
            PartialState().destroy_process_group()


def _train(
    model_arguments: ModelSettings,
    data_arguments: DataSettings,
    arguments: TrainingSettings,
    hub_arguments: HubSettings,
    network_settings: dict[str, Any],
    command: str | None = None,
) -> dict[str, Any]:
    from ..hub.publishing import Destination, Publisher
    from ..training.train import reserved
    from ..training.train import train as run

    destination = Destination.from_settings(hub_arguments) if hub_arguments.push_to_hub else None
    publisher = Publisher(data_arguments.spec, destination)
    with reserved(arguments):
        try:
            results = run(model_arguments, data_arguments, arguments, network_settings, publisher, command)
            publisher.finish()
        finally:
            publisher.abandon()
    return results
