"""Train a network on CamVid, and score searches by clicks in its embeddings.

python scripts/clicks.py --data_dir CAMVID --arm ms_cs --seed 0 --output_dir runs/clicks

The network is trained by the recipe of CamVid. The same clicks of a seed are searched with the features of every arm:
in 100 images of the training split, which choose the threshold, and in all images of the validation split, which are
scored. The result is results/clicks/ARM_seed_N.json; scripts/embedding_tables.py makes the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msctr_hf.data.loading import get_dataset_spec, load_segmentation_dataset
from msctr_hf.evaluation.embedding_maps import Embedder
from msctr_hf.evaluation.predictor import load_predictor
from msctr_hf.training.run_folder import RESULTS_FILE, write_json

from ..evidence.provenance import ROOT, describe_machine, hash_of_code
from .clicks import NUM_IMAGES, THRESHOLDS, draw_clicks, score_clicks
from .networks import ARMS, DATASET, train_network

FEATURES = {"ce": ("decode_head",), "ms_cs": ("decode_head", "projection")}
TUNING, SCORED = "train", "validation"
_DIGITS = 5


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options, flags = parser().parse_known_args(argv)
    machine = describe_machine(torch.get_num_threads())
    code = hash_of_code()  # local changes are refused before anything takes time
    run_dir = options.output_dir / f"{options.arm}_seed_{options.seed}"
    flags += ["--max_steps", str(options.max_steps), "--validation_steps", str(options.max_steps)]
    model = train_network(options.arm, options.seed, options.data_dir, run_dir, flags)
    record = {
        "arm": options.arm,
        "seed": options.seed,
        "steps": json.loads((run_dir / RESULTS_FILE).read_text())["step"],
        "thresholds": THRESHOLDS,
        "features": {
            features: score_features(str(model), features, str(options.data_dir), options.seed)
            for features in FEATURES[options.arm]
        },
        "machine": machine,
        "code": code,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    write_json(options.results / f"{options.arm}_seed_{options.seed}.json", record)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the flags of this command; all others are those of training."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--data_dir", type=Path, required=True, help="folder of CamVid")
    flags.add_argument("--arm", choices=ARMS, required=True, help="objective of the network")
    flags.add_argument("--seed", type=int, required=True, help="seed of the training, the images and the clicks")
    flags.add_argument("--output_dir", type=Path, required=True, help="folder of the runs")
    flags.add_argument(
        "--max_steps", type=int, default=360, help="training steps, after which a network is scored (360)"
    )
    flags.add_argument("--results", type=Path, default=ROOT / "results/clicks", help="folder of the results")
    return flags


def score_features(model: str, features: str, data_dir: str, seed: int) -> dict[str, Any]:
    """Score the features of a network: the mean IoU in the tuning split, and IoU and background in the scored one."""
    embedder, spec = Embedder(load_predictor(model), features), get_dataset_spec(DATASET, data_dir)
    scores = {}
    for split in (TUNING, SCORED):
        dataset = load_segmentation_dataset(DATASET, split, data_dir)
        places = list(range(len(dataset)))
        if split == TUNING:
            places = sorted(np.random.default_rng(seed).permutation(len(dataset))[:NUM_IMAGES].tolist())
        labels = {place: np.asarray(dataset[place]["label"]) for place in places}
        clicks = draw_clicks(labels, len(spec.classes), seed)
        scores[split] = score_clicks(embedder, dataset, labels, clicks, len(spec.classes))
    return {
        "tuning_mean_iou": _rounded(np.mean(list(scores[TUNING]["iou"].values()), axis=0)),
        **{
            measure: {spec.classes[label]: _rounded(values) for label, values in by_class.items()}
            for measure, by_class in scores[SCORED].items()
        },
    }


def _rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]
