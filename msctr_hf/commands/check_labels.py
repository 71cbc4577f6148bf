"""Rank the regions of a labeled data set whose labels are probably wrong.

msctr check-labels --model runs/hrnet --dataset camvid --data_dir CamVid --group_pattern '^[^_]+' --output_dir suspects
msctr check-labels --model runs/quickstart --dataset folder --data_dir my_data --split train+validation

A region is suspicious where its label disagrees with the most similar pixels of other images and with the network.
suspects/check_labels.html shows the regions, the most suspicious first; suspects.csv is the same list. Images of one
group, such as a video, are alike and would vouch for each other's errors: --group_pattern says how image ids name
their groups. A check that was stopped continues when it is started again with the same flags.

On the page you accept suggestions and download their list. The same command with two more flags then writes corrected
label files of these images, and corrected/corrections.csv for --corrections of other commands; nothing is replaced:

msctr check-labels --model runs/quickstart --dataset folder --data_dir my_data --split train+validation \\
    --write_labels corrected --accepted accepted.csv
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..evaluation.settings import EmbedderSettings, LabelCheckSettings
from .command_line import CommandLine, written_to_output_dir


def main(argv: Sequence[str]) -> None:
    """Run `msctr check-labels` with the arguments that follow it on the command line."""
    CommandLine([LabelCheckSettings, EmbedderSettings], __doc__, "check-labels").run(argv, _run)


def _run(arguments: LabelCheckSettings, embedding: EmbedderSettings) -> None:
    if arguments.write_labels is None:
        _check(arguments, embedding)
    else:
        _write_labels(arguments)


def _check(arguments: LabelCheckSettings, embedding: EmbedderSettings) -> None:
    from ..evaluation.class_order import with_train_ids
    from ..evaluation.embedding_maps import Embedder
    from ..evaluation.label_checking import check_labels, save_suspects
    from ..evaluation.label_report import PAGE, write_report
    from ..evaluation.predictor import load_predictor
    from ..folder_lock import locked
    from ..progress import say

    spec, output_dir = arguments.spec, Path(arguments.output_dir)
    predictor = load_predictor(embedding.model, embedding.inference, device=embedding.device)
    predictor, note = with_train_ids(predictor, spec, embedding.model, arguments.class_order)
    if note is not None:
        say(note, file=sys.stderr)
    dataset = arguments.load(arguments.split, predictor.channels)
    with locked(output_dir), written_to_output_dir(output_dir):
        suspects = check_labels(
            Embedder(predictor, embedding.features, embedding.stage),
            dataset,
            spec.classes,
            output_dir,
            group_pattern=arguments.group_pattern,
            neighbors=arguments.neighbors,
            boundary_width=arguments.boundary_width,
            min_area=arguments.min_area,
            top=arguments.top,
            pixels_per_class=arguments.pixels_per_class,
            seed=arguments.seed,
        )
        save_suspects(suspects, spec.classes, output_dir)
        write_report(suspects, dataset, spec.classes, spec.palette, output_dir, f"{spec.name}, {arguments.split}")
    print(f"{len(suspects.regions)} suspicious regions are listed in {output_dir / PAGE}")


def _write_labels(arguments: LabelCheckSettings) -> None:
    from ..data.channels import Channels
    from ..data.loading import replace_channels
    from ..evaluation.label_checking import read_state
    from ..evaluation.label_corrections import write_corrected_labels

    of_network = read_state(Path(arguments.output_dir))["channels"]
    channels = None if of_network is None else Channels(*of_network)
    written = write_corrected_labels(
        arguments.accepted,
        arguments.output_dir,
        arguments.write_labels,
        arguments.load(arguments.split, channels),
        replace_channels(arguments.spec, channels),
        arguments.data_dir,
        arguments.corrections,
    )
    print(f"{written.regions} regions are corrected in {written.images} label files in {arguments.write_labels}")
    if written.note:
        print(written.note)
