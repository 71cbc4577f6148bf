"""Label images: NAME.png contains train ids (and class colors), NAME_overlay.png shows them with a legend.

msctr predict --model runs/quickstart --input street.jpg --output_dir predictions
msctr predict --model user/hrnet-w48-cityscapes --input images/ --scales 0.75 1 1.25 --flip
msctr predict --model runs/quickstart --input day/*.png "night_*/*.jpg" --batch_size 8
msctr predict --model runs/hrnet --input leftImg8bit/test --submission_for cityscapes --output_dir upload
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..evaluation.settings import EvaluationSettings, PredictionSettings
from .command_line import CommandLine, written_to_output_dir


def main(argv: Sequence[str]) -> None:
    """Run `msctr predict` with the arguments that follow it on the command line."""
    groups = [PredictionSettings, EvaluationSettings]
    CommandLine(groups, __doc__, "predict", flag_names={"sources": "input"}).run(argv, _predict)


def _predict(arguments: PredictionSettings, options: EvaluationSettings) -> None:
    from ..data.loading import get_dataset_spec
    from ..evaluation.prediction import predict_files
    from ..evaluation.predictor import load_predictor
    from ..training.run_folder import refuse_models_and_runs

    refuse_models_and_runs(Path(arguments.output_dir), instead="predictions")
    predictor = load_predictor(arguments.model, options.inference, device=options.device, dtype=options.dtype)
    spec = get_dataset_spec(arguments.submission_for) if arguments.submission_for is not None else None
    with written_to_output_dir(arguments.output_dir):
        written = predict_files(
            predictor,
            arguments.input,
            arguments.output_dir,
            opacity=arguments.opacity,
            palette=arguments.palette,
            submission_for=spec,
            class_order=arguments.class_order,
        )
    print(f"labeled {written} image(s) in {arguments.output_dir}")
