"""Label pictures: NAME.png holds train ids, NAME_overlay.png shows them with a legend.

python scripts/predict.py --model runs/quickstart --input street.jpg --output_dir predictions
python scripts/predict.py --model user/hrnet-w48-cityscapes --input pictures/ --scales 0.75 1 1.25 --flip
python scripts/predict.py --model runs/hrnet --input leftImg8bit/test --submission_for cityscapes --output_dir upload
"""

import sys
from pathlib import Path

# this folder's evaluate.py would hide the package of that name
sys.path = [folder for folder in sys.path if folder != str(Path(__file__).resolve().parent)]

from transformers.utils import logging

from msctr_hf.arguments import EvaluationArguments, PredictionArguments, exit_with_a_sentence, parse_arguments
from msctr_hf.data.loading import get_dataset_spec
from msctr_hf.evaluation.prediction import predict_files
from msctr_hf.evaluation.predictor import Protocol, load_predictor


def main() -> None:
    logging.disable_progress_bar()
    arguments, view = parse_arguments([PredictionArguments, EvaluationArguments], description=__doc__)
    predictor = load_predictor(arguments.model, Protocol.from_arguments(view), device=view.device, dtype=view.dtype)
    spec = get_dataset_spec(arguments.submission_for) if arguments.submission_for is not None else None
    written = predict_files(
        predictor, arguments.input, arguments.output_dir, opacity=arguments.opacity, submission_for=spec
    )
    print(f"labelled {written} picture(s) in {arguments.output_dir}")


if __name__ == "__main__":
    exit_with_a_sentence(main)
