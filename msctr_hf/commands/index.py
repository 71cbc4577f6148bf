"""Keep embeddings of the pixels of a labeled data set in one file, a bank, with prototypes of every class.

msctr index --model runs/quickstart --dataset synthetic_scenes --bank bank.safetensors
msctr index --model runs/hrnet --dataset cityscapes --data_dir /data/cityscapes --window_size 512 1024

The bank holds the means of the clusters of every class, and pixels of every class, taken from all images in turn, with
their image and position. It belongs to this network, its image processor, these windows and classes: with others it
is refused. All stages are joined unless --stage names one. A network trained without contrast has no projections:
index it with --features decode_head (the pyramid of UPerNet) or --features backbone.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..evaluation.settings import EmbedderSettings, IndexSettings
from .command_line import CommandLine


def main(argv: Sequence[str]) -> None:
    """Run `msctr index` with the arguments that follow it on the command line."""
    CommandLine([IndexSettings, EmbedderSettings], __doc__, "index").run(argv, _index)


def _index(arguments: IndexSettings, embedding: EmbedderSettings) -> None:
    from ..evaluation.embedding_bank import index_dataset, refuse_other_files
    from ..evaluation.embedding_maps import Embedder
    from ..evaluation.predictor import load_predictor

    refuse_other_files(arguments.bank)
    predictor = load_predictor(embedding.model, embedding.inference, device=embedding.device)
    spec, dataset = arguments.spec, arguments.load(arguments.split, predictor.channels)
    bank = index_dataset(
        Embedder(predictor, embedding.features, embedding.stage),
        dataset,
        spec.classes,
        prototypes_per_class=arguments.prototypes_per_class,
        pixels_per_class=arguments.pixels_per_class,
        seed=arguments.seed,
    )
    bank.save(arguments.bank)
    if missing := [name for label, name in enumerate(bank.classes) if label not in bank.labels]:
        print(f"not in these images: {', '.join(missing)}")
    print(
        f"{len(bank.labels)} pixels and {len(bank.prototype_labels)} prototypes, of {bank.embeddings.shape[1]} "
        f"channels, are in {arguments.bank}"
    )
