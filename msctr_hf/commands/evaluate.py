"""Score a network on a data set: mean IoU at the labels' own resolution, and a report.

msctr evaluate --model runs/quickstart --dataset synthetic_scenes
msctr evaluate --model runs/hrnet --dataset cityscapes --data_dir /data/cityscapes --scales 0.75 1 1.25 --flip \\
    --output_dir runs/hrnet/multi_scale
msctr evaluate --model runs/hrnet --dataset cityscapes --data_dir /data/cityscapes --window_size 512 1024 \\
    --boundary_iou --output_dir runs/hrnet/windows
accelerate launch -m msctr_hf evaluate --model runs/hrnet --dataset cityscapes --data_dir /data/cityscapes
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..errors import UsageError
from ..evaluation.settings import EvaluationSettings, ScoringSettings
from .command_line import CommandLine, written_to_output_dir


def main(argv: Sequence[str]) -> None:
    """Run `msctr evaluate` with the arguments that follow it on the command line."""
    CommandLine([ScoringSettings, EvaluationSettings], __doc__, "evaluate").run(argv, _evaluate)


def _evaluate(arguments: ScoringSettings, options: EvaluationSettings) -> None:
    from ..training.processes import join_processes, locked_on_main
    from ..training.run_folder import refuse_models_and_runs

    output_dir = None if arguments.output_dir is None else Path(arguments.output_dir)
    if output_dir is not None:
        refuse_models_and_runs(output_dir)
    join_processes(cpu=options.device == "cpu")
    with locked_on_main(output_dir):
        _score(arguments, options)


def _score(arguments: ScoringSettings, options: EvaluationSettings) -> None:
    from accelerate import Accelerator

    from ..evaluation.class_order import with_train_ids
    from ..evaluation.predictor import load_predictor
    from ..evaluation.report import write_report
    from ..evaluation.scoring import iou_table, score_dataset
    from ..progress import say
    from ..training.description import git_commit
    from ..training.run_folder import RESULTS_FILE, write_json

    spec = arguments.spec
    accelerator = Accelerator(cpu=options.device == "cpu")
    predictor = load_predictor(
        arguments.model, options.inference, device=options.device or accelerator.device, dtype=options.dtype
    )
    predictor, note = with_train_ids(predictor, spec, arguments.model, arguments.class_order)
    dataset = arguments.load(arguments.split, predictor.channels)
    if note is not None and accelerator.is_main_process:
        say(note, file=sys.stderr)
    scores = score_dataset(
        predictor,
        dataset,
        num_labels=len(spec.classes),
        accelerator=accelerator,
        batch_size=options.batch_size,
        num_workers=arguments.num_workers,
        with_boundaries=arguments.boundary_iou,
        keep_worst=arguments.worst if arguments.output_dir is not None else 0,
    )
    if not scores.images:
        raise UsageError(
            f"`split`: the images of {arguments.split} have no labeled pixel, so there is nothing to score; choose "
            "another split, or check `ignored` in the description of the data set."
        )
    results = {
        **scores.results(spec.id2label, spec.groups),
        "model": arguments.model,
        "dataset": spec.name,
        "split": arguments.split,
        "protocol": asdict(options),
        "git_commit": git_commit(),
        **({} if note is None else {"class_order": note}),
    }
    if accelerator.is_main_process:
        print(iou_table(results))
        if arguments.output_dir is not None:
            folder = Path(arguments.output_dir)
            with written_to_output_dir(folder):
                write_json(folder / RESULTS_FILE, results)
                notes = write_report(folder, results, scores, spec.classes, spec.palette)
            print(*notes, f"{RESULTS_FILE}, report.md and figures are in {folder}", sep="\n")
    accelerator.end_training()
