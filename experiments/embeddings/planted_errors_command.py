"""Plant errors into the labels of CamVid, train a network with them, and count which are found.

python scripts/planted_errors.py --data_dir CAMVID --arm ms_cs --seed 0 --output_dir runs/planted

The network is trained by the recipe of CamVid with the planted errors in its labels. The regions of msctr check-labels
are compared with those of the usual rule, 1 - the probability of the given label, of the same network, alone and
with the factor by which msctr check-labels prefers large regions, and with the regions of msctr check-labels in random
order. What is finished is not done again. The result is
results/planted_errors/ARM_seed_N.json.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from msctr_hf.data.decoding import files_of
from msctr_hf.data.loading import get_dataset_spec, load_segmentation_dataset
from msctr_hf.evaluation.embedding_maps import Embedder
from msctr_hf.evaluation.label_checking import REGIONS_FILE
from msctr_hf.evaluation.label_regions import Region, find_components, load_regions, pixels_of_cells
from msctr_hf.evaluation.predictor import load_predictor
from msctr_hf.training.run_folder import write_json

from ..evidence.provenance import ROOT, describe_machine, hash_of_code
from .networks import ARMS, DATASET, run_command, train_network
from .planted_errors import KINDS, MIN_AREA, PlantedError, found_by, measure, plant_errors

SPLIT, FOLDER = "train", "train"
VIDEO = "^[^_]+"  # the group of an image id
FEATURES = "decode_head"  # which both arms have
SHUFFLES = 100


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options, flags = parser().parse_known_args(argv)
    record = run(options.data_dir, options.arm, options.seed, options.output_dir, flags)
    options.results.mkdir(parents=True, exist_ok=True)
    write_json(options.results / f"{options.arm}_seed_{options.seed}.json", record)
    for name, measured in record["rules"].items():
        print(f"{name}: " + ", ".join(f"{key} {100 * value:.1f} %" for key, value in measured.items()))


def parser() -> argparse.ArgumentParser:
    """Build the parser of the flags of this command; all others are those of training."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--data_dir", type=Path, required=True, help="folder of CamVid")
    flags.add_argument("--arm", choices=ARMS, required=True, help="objective of the network")
    flags.add_argument("--seed", type=int, required=True, help="seed of the errors and of the training")
    flags.add_argument("--output_dir", type=Path, required=True, help="folder of the data, runs and reports")
    flags.add_argument("--results", type=Path, default=ROOT / "results/planted_errors", help="folder of the results")
    return flags


def run(data_dir: Path, arm: str, seed: int, output_dir: Path, flags: Sequence[str]) -> dict[str, Any]:
    """Plant errors, train, check, and measure; `flags` are further flags of training."""
    machine = describe_machine(torch.get_num_threads())
    code = hash_of_code()  # local changes are refused before anything takes time
    planted_dir = output_dir / f"data_seed_{seed}"
    errors = write_planted(data_dir, planted_dir, seed)
    model = train_network(arm, seed, planted_dir, output_dir / f"{arm}_seed_{seed}", flags)
    check_dir = output_dir / f"check_{arm}_seed_{seed}"
    data = ("--dataset", DATASET, "--data_dir", planted_dir, "--split", SPLIT)
    run_command(
        "check-labels", "--model", model, *data, "--output_dir", check_dir, "--group_pattern", VIDEO,
        "--features", FEATURES, "--min_area", MIN_AREA, "--top", 10 * len(errors),
    )  # fmt: skip
    ours = load_regions(check_dir / REGIONS_FILE)[0]
    usual = regions_by_probability(model, planted_dir)
    found = found_by(ours, errors)
    return {
        "arm": arm,
        "seed": seed,
        "errors": {kind: sum(error.kind == kind for error in errors) for kind in KINDS},
        "rules": {
            "check_labels": measure(found, len(errors)),
            "probability": measure(found_by(usual, errors), len(errors)),
            "probability_and_area": measure(found_by(weighted_by_area(usual), errors), len(errors)),
            "random": _measure_shuffled(ours, errors, seed),
        },
        "found_by_kind": {
            kind: sum(hit is not None and errors[hit].kind == kind for hit in found[: len(errors)]) for kind in KINDS
        },
        "regions": {"check_labels": len(ours), "probability": len(usual)},
        "machine": machine,
        "code": code,
    }


def write_planted(data_dir: Path, planted_dir: Path, seed: int) -> list[PlantedError]:
    """Write the data set with errors in its training labels; all other files are links."""
    spec = get_dataset_spec(DATASET, str(data_dir))
    dataset = load_segmentation_dataset(DATASET, SPLIT, str(data_dir))
    image_ids, files = dataset.with_format(None)["image_id"][:], files_of(dataset, "label")
    labels = {image_id: np.asarray(dataset[place]["label"]) for place, image_id in enumerate(image_ids)}
    wrong, errors = plant_errors(labels, len(spec.classes), seed)
    if planted_dir.exists():
        return errors
    partial = planted_dir.with_name(f".{planted_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for folder in sorted(path for path in data_dir.resolve().iterdir() if path.is_dir()):
        if folder.name != FOLDER:
            partial.mkdir(parents=True, exist_ok=True)
            (partial / folder.name).symlink_to(folder)
    (partial / FOLDER / "labels").mkdir(parents=True)
    (partial / FOLDER / "images").symlink_to(data_dir.resolve() / FOLDER / "images")
    raw_values = np.array([spec.raw_values()[label] for label in range(len(spec.classes))])
    for image_id, path in zip(image_ids, files, strict=True):
        target = partial / FOLDER / "labels" / path.name
        if image_id not in wrong:
            target.symlink_to(path.resolve())
            continue
        raw = np.array(Image.open(path))
        changed = wrong[image_id] != labels[image_id]
        raw[changed] = raw_values[wrong[image_id][changed]]
        Image.fromarray(raw).save(target)
    partial.rename(planted_dir)
    return errors


def regions_by_probability(model: Path, data_dir: Path) -> list[Region]:
    """Rank regions by the usual rule: where the network predicts another class, 1 - the probability of the label.

    Cells, components, boundaries and the smallest area are those of `msctr check-labels`.
    """
    predictor = load_predictor(str(model))
    embedder = Embedder(predictor, FEATURES)
    dataset = load_segmentation_dataset(DATASET, SPLIT, str(data_dir))
    regions: list[Region] = []
    for place in range(len(dataset)):
        regions.extend(usual_regions(embedder, place, dataset[place]))
    return sorted(regions, key=lambda region: -region.score)


def usual_regions(embedder: Embedder, place: int, sample: dict[str, Any]) -> Iterator[Region]:
    """Yield the regions of an image where the network predicts another class than its label, with their scores."""
    labels, tile = np.asarray(sample["label"]), next(iter(embedder.tiles(sample["image"])))
    cells = labels[np.ix_(tile.pixel_rows, tile.pixel_columns)].astype(np.int64)
    probabilities = embedder.predictor.probabilities_at(sample["image"], tile.pixel_rows, tile.pixel_columns)
    is_labeled, predictions = cells < probabilities.shape[-1], probabilities.argmax(axis=-1)
    of_label = np.take_along_axis(probabilities, np.where(is_labeled, cells, 0)[..., None], axis=-1)[..., 0]
    scores = np.where(is_labeled & (predictions != cells), 1 - of_label, 0)
    for component in find_components(cells, predictions, scores, boundary_width=1):
        pixels = pixels_of_cells(component, cells.shape, tile.extent, labels)
        if pixels is not None and pixels[2].sum() >= MIN_AREA:
            score = float(scores[component.part][component.cells].mean())
            yield Region(place, sample["image_id"], component.label, component.suggestion, score, *pixels)


def weighted_by_area(regions: list[Region]) -> list[Region]:
    """Rank regions by their scores times the factor of the area in the score of `msctr check-labels`."""
    return sorted(regions, key=lambda region: -region.score * np.log2(1 + region.area / MIN_AREA))


def _measure_shuffled(regions: list[Region], errors: list[PlantedError], seed: int) -> dict[str, float]:
    """Compute the mean of `measure` over random orders of the regions."""
    random = np.random.default_rng(seed)
    orders = [[regions[place] for place in random.permutation(len(regions))] for _ in range(SHUFFLES)]
    measured = [measure(found_by(order, errors), len(errors)) for order in orders]
    return {name: float(np.mean([each[name] for each in measured])) for name in measured[0]}
