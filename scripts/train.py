"""Train a segmentation network with multi-scale and cross-scale contrast.

python scripts/train.py --config configs/quickstart.yaml
accelerate launch scripts/train.py --config configs/cityscapes/hrnet_w48.yaml --data_dir /data/cityscapes
accelerate launch scripts/train.py --config configs/cityscapes/hrnet_w48.yaml --contrastive_mode ce   # baseline

Exit codes: 0 trained to the end; 2 faulty input or a full disk, said in one sentence; 75 stopped by SIGTERM or Ctrl-C,
with a checkpoint: start again with --resume auto.
"""

import sys
from pathlib import Path

# this folder's evaluate.py would hide the package of that name
sys.path = [folder for folder in sys.path if folder != str(Path(__file__).resolve().parent)]

from transformers.utils import logging

from msctr_hf.arguments import (
    DataArguments,
    HubArguments,
    ModelArguments,
    TrainingArguments,
    exit_with_a_sentence,
    in_words_of_flags,
    parse_arguments,
)
from msctr_hf.hub.publishing import Destination, Publisher
from msctr_hf.training.interruption import EXIT_INTERRUPTED, Interrupted
from msctr_hf.training.train import print_results, train


def main() -> None:
    logging.disable_progress_bar()
    model_arguments, data_arguments, arguments, hub_arguments, settings = parse_arguments(
        [ModelArguments, DataArguments, TrainingArguments, HubArguments], description=__doc__, with_config_fields=True
    )
    destination = Destination.from_arguments(hub_arguments) if hub_arguments.push_to_hub else None
    publisher = Publisher(data_arguments.spec, destination)
    try:
        results = train(model_arguments, data_arguments, arguments, settings, publisher)
        publisher.finish()
    except Interrupted as stopped:
        print(in_words_of_flags(str(stopped)), file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    finally:
        publisher.abandon()
    if results:
        print_results(results, arguments.output_dir)


if __name__ == "__main__":
    exit_with_a_sentence(main)
