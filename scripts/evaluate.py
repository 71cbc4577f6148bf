"""Score a network on a data set: mean IoU at the labels' own resolution, and a report.

    python scripts/evaluate.py --model runs/quickstart --dataset synthetic_scenes
    python scripts/evaluate.py --model runs/hrnet --dataset cityscapes --data_dir /data/cityscapes \\
        --scales 0.75 1 1.25 --flip --output_dir runs/hrnet/multi_scale
    python scripts/evaluate.py --model runs/hrnet --dataset cityscapes --data_dir /data/cityscapes \\
        --window_size 512 1024 --boundary_iou true --output_dir runs/hrnet/windows
    accelerate launch scripts/evaluate.py --model runs/hrnet --dataset cityscapes --data_dir /data/cityscapes
"""

import sys
from pathlib import Path

# this folder's evaluate.py would hide the package of that name
sys.path = [folder for folder in sys.path if folder != str(Path(__file__).resolve().parent)]

from dataclasses import asdict

from accelerate import Accelerator
from transformers.utils import logging

from msctr_hf.arguments import EvaluationArguments, ScoringArguments, exit_with_a_sentence, parse_arguments
from msctr_hf.errors import UsageError
from msctr_hf.evaluation.predictor import Protocol, load_predictor
from msctr_hf.evaluation.report import write_report
from msctr_hf.evaluation.scoring import iou_table, score_dataset
from msctr_hf.training.description import git_commit
from msctr_hf.training.run_folder import write_json


def main() -> None:
    logging.disable_progress_bar()
    arguments, view = parse_arguments([ScoringArguments, EvaluationArguments], description=__doc__)
    spec, dataset = arguments.spec, arguments.load(arguments.split)
    accelerator = Accelerator(cpu=view.device == "cpu")
    predictor = load_predictor(
        arguments.model, Protocol.from_arguments(view), device=view.device or accelerator.device, dtype=view.dtype
    )
    if predictor.model.config.num_labels != len(spec.classes):
        raise UsageError(
            f"{arguments.model} tells {predictor.model.config.num_labels} classes apart, but {spec.name} has "
            f"{len(spec.classes)}; evaluate it on the data set it was trained for."
        )
    scores = score_dataset(
        predictor,
        dataset,
        num_labels=len(spec.classes),
        accelerator=accelerator,
        batch_size=view.batch_size,
        num_workers=arguments.num_workers,
        with_boundaries=arguments.boundary_iou,
        keep_worst=arguments.worst if arguments.output_dir is not None else 0,
    )
    results = {
        **scores.results(spec.id2label, spec.groups),
        "model": arguments.model,
        "dataset": spec.name,
        "split": arguments.split,
        "pictures": len(scores.pictures),
        "protocol": asdict(view),
        "git_commit": git_commit(),
    }
    if accelerator.is_main_process:
        print(iou_table(results))
        if arguments.output_dir is not None:
            folder = Path(arguments.output_dir)
            write_json(folder / "results.json", results)
            notes = write_report(folder, results, scores, spec.classes, spec.palette)
            print(*notes, f"results.json, report.md and figures are in {folder}", sep="\n")
    accelerator.end_training()


if __name__ == "__main__":
    exit_with_a_sentence(main)
