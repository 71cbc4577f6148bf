"""Turn a checkpoint of the paper's released code into a folder for `from_pretrained`.

    python scripts/convert_checkpoint.py --checkpoint chkpt.pt --config configs/cityscapes/hrnet_w48.yaml \\
        --output_dir converted/hrnet_w48
"""

import sys
from pathlib import Path

# this folder's evaluate.py would hide the package of that name
sys.path = [folder for folder in sys.path if folder != str(Path(__file__).resolve().parent)]

from dataclasses import dataclass, field

from transformers.utils import logging

from msctr_hf.arguments import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    exit_with_a_sentence,
    parse_arguments,
)
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.errors import UsageError
from msctr_hf.hub.original_checkpoints import convert_original_checkpoint
from msctr_hf.models.backbone_weights import read_state_dict
from msctr_hf.training.network import build_config, build_image_processor, image_processor_options
from msctr_hf.training.run_folder import check_output_dir


@dataclass
class ConversionArguments:
    """What is converted."""

    checkpoint: str = field(metadata={"help": "File of the released code: {'model_state_dict': ...} or a state dict."})


def main() -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    conversion, model_arguments, data_arguments, arguments, settings = parse_arguments(
        [ConversionArguments, ModelArguments, DataArguments, TrainingArguments],
        description=__doc__,
        with_config_fields=True,
    )
    if not any(word.split("=")[0] == "--output_dir" for word in sys.argv):
        raise UsageError("Say with --output_dir where the converted model goes.")
    output_dir = Path(arguments.output_dir)
    check_output_dir(output_dir, overwrite=False, resume=False)
    config = build_config(model_arguments, settings, get_dataset_spec(data_arguments.dataset, data_arguments.data_dir))
    model, names = convert_original_checkpoint(read_state_dict(conversion.checkpoint), config)
    for original, ours in names.items():
        print(f"{original} -> {ours}")
    model.save_pretrained(output_dir)
    build_image_processor(model, **image_processor_options(data_arguments)).save_pretrained(output_dir)
    print(f"{len(names)} tensors converted; the model is in {output_dir}")


if __name__ == "__main__":
    exit_with_a_sentence(main)
