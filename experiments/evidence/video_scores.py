"""Score a network on a data set and on each of its videos, at one scale, with the boundary IoU.

python scripts/score_videos.py --model RUN/last --dataset camvid --data_dir CAMVID --split test --output_dir SCORES

Of the name of an image, what comes before the last underscore is the video: 0001TP of 0001TP_008550. The mean IoU is
that of one confusion matrix over all images. SCORES/results.json has all scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from accelerate import Accelerator

from msctr_hf.commands.command_line import CommandLine
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.mean_iou import ConfusionMatrix
from msctr_hf.evaluation.predictor import load_predictor
from msctr_hf.evaluation.scoring import results_by_name, score_dataset
from msctr_hf.evaluation.settings import EvaluationSettings, ScoringSettings
from msctr_hf.training.run_folder import RESULTS_FILE, write_json


def main(argv: Sequence[str]) -> None:
    """Score the network that the command line names."""
    CommandLine([ScoringSettings, EvaluationSettings], __doc__, "evaluate").run(argv, _score)


def video_of(image_id: str) -> str:
    """Return the name of the video that an image is from."""
    name = PurePosixPath(image_id).name
    return name.rpartition("_")[0] or name


def _score(arguments: ScoringSettings, options: EvaluationSettings) -> None:
    if arguments.output_dir is None:
        raise UsageError("`output_dir`: name the folder for the scores.")
    spec = arguments.spec
    accelerator = Accelerator(cpu=options.device == "cpu")
    predictor = load_predictor(
        arguments.model, options.inference, device=options.device or accelerator.device, dtype=options.dtype
    )
    videos: dict[str, ConfusionMatrix] = {}
    numbers: dict[str, int] = {}

    def add(samples: list[dict[str, Any]], predictions: list[np.ndarray]) -> None:
        for sample, prediction in zip(samples, predictions, strict=True):
            video = video_of(sample["image_id"])
            confusion = videos.setdefault(video, ConfusionMatrix(len(spec.classes)))
            confusion.update(prediction, np.asarray(sample["label"]))
            numbers[video] = numbers.get(video, 0) + 1

    scores = score_dataset(
        predictor,
        arguments.load(arguments.split),
        num_labels=len(spec.classes),
        accelerator=accelerator,
        batch_size=options.batch_size,
        num_workers=arguments.num_workers,
        with_boundaries=True,
        on_batch=add,
    )
    results = {
        "split": arguments.split,
        **scores.results(spec.id2label, spec.groups),
        "videos": {
            video: {"images": numbers[video], **results_by_name(videos[video].scores(), spec.id2label)}
            for video in sorted(videos)
        },
    }
    write_json(Path(arguments.output_dir) / RESULTS_FILE, results)
