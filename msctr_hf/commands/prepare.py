"""Check a data set, and make a copy that loads faster. Nothing is uploaded.

msctr prepare --dataset cityscapes --data_dir official                               # check only
msctr prepare --dataset cityscapes --data_dir official --output_dir parquet
msctr prepare --dataset cityscapes --data_dir official --predecode --output_dir pixels
msctr prepare --dataset folder --data_dir aerial --predecode --tile_size 1024 1024 --output_dir tiles
msctr prepare --unlabeled_dir images                                                 # images without labels

The check reads every file of train, validation and, where there is one, test. It counts broken files by the kind of
their fault and names the first ones, and reports classes that no split holds, ignored pixels, and images that two
splits share. The copy consists of parquet shards with a data card or, with --predecode, of raw pixels that are
memory-mapped, so that training reads only its crops. An interrupted conversion resumes where it stopped; a copy of
other files, classes or label values is refused. Train with --data_dir OUTPUT_DIR. --unlabeled_dir checks the images of
a folder that a run learns from without labels, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.settings import PreparationSettings
from .command_line import CommandLine, written_to_output_dir


def main(argv: Sequence[str]) -> None:
    """Run `msctr prepare` with the arguments that follow it on the command line."""
    CommandLine([PreparationSettings], __doc__, "prepare").run(argv, _prepare)


def _prepare(arguments: PreparationSettings) -> None:
    from ..data.preparation import prepare
    from ..data.unlabeled import check_folder

    if arguments.unlabeled_dir is not None:
        check_folder(arguments.unlabeled_dir, arguments.channels, num_workers=arguments.num_workers)
        return
    data_dir, output_dir, corrections = (
        Path(path) if path is not None else None
        for path in (arguments.data_dir, arguments.output_dir, arguments.corrections)
    )
    with written_to_output_dir(output_dir):
        prepare(
            arguments.spec,
            arguments.splits,
            data_dir,
            arguments.saved,
            corrections=corrections,
            output_dir=output_dir,
            predecode=arguments.predecode,
            tile_size=arguments.tile_size,
            skip_broken=arguments.skip_broken,
            num_workers=arguments.num_workers,
        )
