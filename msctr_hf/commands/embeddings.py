"""Plot the embeddings of pixels by class, and the similarity of all pixels to one.

msctr embeddings --model runs/quickstart --dataset synthetic_scenes
msctr embeddings --model runs/hrnet --dataset cityscapes --data_dir /data/cityscapes \\
    --image frankfurt/frankfurt_000000_000294 --pixel 500 1200

embeddings.png shows pixels of every stage, colored by class, similar ones close together, with their silhouette
coefficient (1: classes are well separated, 0: they overlap, below 0: they are mixed). similarity.png shows the cosine
similarity between one pixel, given or clicked, and all pixels of every stage. Both use projections; to compare with a
network trained without contrast, use --features decode_head (the pyramid of UPerNet) or --features backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..evaluation.settings import EmbeddingSettings
from .command_line import CommandLine, written_to_output_dir


def main(argv: Sequence[str]) -> None:
    """Run `msctr embeddings` with the arguments that follow it on the command line."""
    CommandLine([EmbeddingSettings], __doc__, "embeddings", flag_names={"image_id": "image"}).run(argv, _embeddings)


def _embeddings(arguments: EmbeddingSettings) -> None:
    from ..evaluation.embeddings import (
        ask_for_pixel,
        choose_sample,
        collect_embeddings,
        embedding_figure,
        similarity_figure,
        similarity_maps,
        stage_features,
        to_plane,
    )
    from ..evaluation.finite import naming_the_image
    from ..evaluation.predictor import load_predictor
    from ..evaluation.visualization import viewable

    predictor = load_predictor(arguments.model, device=arguments.device)
    spec, dataset = arguments.spec, arguments.load(arguments.split, predictor.channels)
    chosen = choose_sample(dataset, arguments.image)
    image = chosen["image"]
    with naming_the_image(chosen["image_id"]):
        features = stage_features(predictor, image, arguments.features)
    shown = viewable(image)
    size = (shown.height, shown.width)
    row, column = ask_for_pixel(shown) if arguments.click else arguments.pixel or (size[0] // 2, size[1] // 2)
    across = arguments.features == "projection"
    maps = similarity_maps(features, (row, column), size, across)

    every = max(1, len(dataset) // arguments.num_images)
    samples = dataset.select(range(0, len(dataset), every)[: arguments.num_images])
    stages = collect_embeddings(
        predictor, samples, len(spec.classes), arguments.pixels_per_class, arguments.seed, arguments.features
    )
    points = [to_plane(stage.features, arguments.method, arguments.seed) for stage in stages]
    figures = {
        "embeddings.png": embedding_figure(stages, points, spec.classes, spec.palette),
        "similarity.png": similarity_figure(shown, (row, column), maps),
    }
    folder = Path(arguments.output_dir)
    with written_to_output_dir(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(folder / name, dpi=110)
    print(f"{' and '.join(figures)} are in {folder}")
