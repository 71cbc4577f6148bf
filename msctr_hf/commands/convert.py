"""Convert a checkpoint of the paper's released code to a folder for `from_pretrained`.

msctr convert --checkpoint chkpt.pt --config cityscapes/hrnet_w48 --output_dir converted/hrnet_w48
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.settings import DataSettings
from ..errors import UsageError
from ..hub.settings import ConversionSettings
from ..training.settings import ModelSettings, TrainingSettings
from .command_line import CommandLine, written_to_output_dir


def main(argv: Sequence[str]) -> None:
    """Run `msctr convert` with the arguments that follow it on the command line."""
    groups = [ConversionSettings, ModelSettings, DataSettings, TrainingSettings]
    command_line = CommandLine(groups, __doc__, "convert", with_network_settings=True)

    def convert(*settings: Any) -> None:
        # only the flag counts: the default, or a recipe, names the folder of a training run
        if not any(word.split("=")[0] in ("--output_dir", "--output-dir") for word in argv):
            raise UsageError("Name the folder for the converted model: `output_dir='FOLDER'`.")
        _convert(*settings)

    command_line.run(argv, convert)


def _convert(
    conversion: ConversionSettings,
    model_arguments: ModelSettings,
    data_arguments: DataSettings,
    arguments: TrainingSettings,
    network_settings: dict[str, Any],
) -> None:
    from transformers.utils import logging

    from ..data.loading import get_dataset_spec
    from ..errors import as_usage_error
    from ..evaluation.finite import refuse_faulty_weights
    from ..folder_lock import locked
    from ..hub.original_checkpoints import convert_original_checkpoint
    from ..models.backbone_weights import read_state_dict
    from ..training.network import build_config, build_image_processor, image_processor_options
    from ..training.run_folder import check_output_dir, save_model

    logging.set_verbosity_error()
    output_dir = Path(arguments.output_dir)
    with locked(output_dir):
        check_output_dir(output_dir, overwrite=False, resume=False)
        spec = get_dataset_spec(data_arguments.dataset, data_arguments.data_dir)
        config = build_config(model_arguments, network_settings, spec)
        with as_usage_error(ValueError):
            state = read_state_dict(conversion.checkpoint)
        model, names = convert_original_checkpoint(state, config)
        refuse_faulty_weights(model, prefix=f"`checkpoint`: {conversion.checkpoint} cannot be used: ")
        for original, ours in names.items():
            print(f"{original} -> {ours}")
        with written_to_output_dir(output_dir):
            save_model(model, build_image_processor(model, **image_processor_options(data_arguments)), output_dir)
    print(f"{len(names)} tensors converted; the model is in {output_dir}")
