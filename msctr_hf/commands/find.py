"""Find in other images what is like some pixels, or a box, of one image.

msctr find --model runs/quickstart --image street.jpg --pixel 150 60 --input images/ --output_dir found
msctr find --model runs/hrnet --image street.jpg --box 140 50 180 90 --input images/ --cache_dir embeddings

find.html shows the images with the most similar pixels, the best first; matches.csv is the same list. NNN_mask.png is
white where the cosine with one of the pixels, or with the mean of the box, reaches --threshold; NNN.png shows the mask
over the image. The best threshold depends on the network and the features: look at the page, then try another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..evaluation.settings import EmbedderSettings, FindSettings
from .command_line import CommandLine, written_to_output_dir


def main(argv: Sequence[str]) -> None:
    """Run `msctr find` with the arguments that follow it on the command line."""
    groups = [FindSettings, EmbedderSettings]
    CommandLine(groups, __doc__, "find", flag_names={"sources": "input"}).run(argv, _find)


def _find(arguments: FindSettings, embedding: EmbedderSettings) -> None:
    from ..data.image_files import readable_suffixes
    from ..data.images import read_image
    from ..evaluation.embedding_maps import Embedder
    from ..evaluation.finding import EmbeddedImages, Query, embed_query, find_alike, refuse_other_folders, write_found
    from ..evaluation.finite import naming_the_image
    from ..evaluation.prediction import find_images
    from ..evaluation.predictor import load_predictor

    output_dir = Path(arguments.output_dir)
    refuse_other_folders(output_dir)
    predictor = load_predictor(embedding.model, embedding.inference, device=embedding.device)
    paths = list(find_images(arguments.input, output_dir, readable_suffixes(predictor.channels)))
    query = Query(read_image(arguments.image, predictor.channels), arguments.pixel, arguments.box)
    embedder = Embedder(predictor, embedding.features, embedding.stage)
    with naming_the_image(arguments.image):
        queries = embed_query(embedder, query)
    found, unreadable = find_alike(
        EmbeddedImages(embedder, arguments.cache_dir),
        paths,
        queries,
        threshold=arguments.threshold,
        top=arguments.top,
    )
    with written_to_output_dir(output_dir):
        origin = f"Searched image: {arguments.image}. Network: {embedding.model}, {embedding.features}."
        write_found(found, query, output_dir, arguments.threshold, predictor.channels, origin=origin)
    print(f"{len(found)} of {len(paths)} images are listed in {output_dir / 'find.html'}")
    if unreadable:
        raise UsageError(f"{len(unreadable)} of {len(paths)} images cannot be read: {'; '.join(unreadable)}")
