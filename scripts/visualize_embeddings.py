"""Look at what the contrast has done to the pixels of a network.

    python scripts/visualize_embeddings.py --model runs/quickstart --dataset synthetic_scenes
    python scripts/visualize_embeddings.py --model runs/hrnet --dataset cityscapes --data_dir /data/cityscapes \\
        --picture frankfurt/frankfurt_000000_000294 --pixel 500 1200

embeddings.png shows pixels of every stage, coloured by class and similar ones close together, with their
silhouette coefficient: how far classes lie apart (1 far, 0 not at all, below 0 mixed up). similarity.png shows the
cosine between one pixel, given or clicked, and all pixels of every stage. Both show projections; to compare with a
network trained without contrast, --features stages shows the backbone's maps, --features pyramid those of UPerNet.
"""

import sys
from pathlib import Path

# this folder's evaluate.py would hide the package of that name
sys.path = [folder for folder in sys.path if folder != str(Path(__file__).resolve().parent)]

from transformers.utils import logging

from msctr_hf.arguments import EmbeddingArguments, exit_with_a_sentence, parse_arguments
from msctr_hf.evaluation.embeddings import (
    ask_for_pixel,
    choose_sample,
    collect_embeddings,
    embedding_figure,
    similarity_figure,
    similarity_maps,
    stage_features,
    to_plane,
)
from msctr_hf.evaluation.predictor import Protocol, load_predictor


def main() -> None:
    logging.disable_progress_bar()
    (arguments,) = parse_arguments([EmbeddingArguments], description=__doc__)
    spec, dataset = arguments.spec, arguments.load(arguments.split)
    predictor = load_predictor(arguments.model, Protocol(), device=arguments.device)
    sample = choose_sample(dataset, arguments.picture)
    image = sample["image"]
    features = stage_features(predictor, image, arguments.features)
    pixel = ask_for_pixel(image) if arguments.click else arguments.pixel or [image.height // 2, image.width // 2]
    across = arguments.features == "projections"
    maps = similarity_maps(features, tuple(pixel), (image.height, image.width), across)

    every = max(1, len(dataset) // arguments.pictures)
    samples = [dataset[index] for index in range(0, len(dataset), every)][: arguments.pictures]
    stages = collect_embeddings(
        predictor, samples, len(spec.classes), arguments.pixels_per_class, arguments.seed, arguments.features
    )
    points = [to_plane(stage.features, arguments.method, arguments.seed) for stage in stages]
    figures = {
        "embeddings.png": embedding_figure(stages, points, spec.classes, spec.palette),
        "similarity.png": similarity_figure(image, tuple(pixel), maps),
    }
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=110)
    print(f"{' and '.join(figures)} are in {folder}")


if __name__ == "__main__":
    exit_with_a_sentence(main)
