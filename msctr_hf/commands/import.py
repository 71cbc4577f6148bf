"""Import the export of a labeling tool as a checked folder data set. Nothing is uploaded.

msctr import cvat export my_data
msctr import export my_data --unannotated_images background          # the format is recognized
msctr import coco instances.json my_data --image_dir images --group_pattern '^video\\d+'

Images are copied unchanged; labels become PNGs, in which 255 is ignored; dataset.yaml keeps classes and colors. Pixels
outside all objects are background, which --ignored_classes background ignores. Objects with more pixels are drawn
first, so that smaller ones lie above them; of equal ones the later lies above. Polygons of one object are united;
within a polygon the even-odd rule holds, and a pixel belongs to it if its center is inside. Whole coordinates are
edges between pixels, but centers of pixels in labelme and supervisely, where fractions are dropped and the outline
belongs to the object. Crowd regions are ignored, and lie below all objects; CVAT writes every mask as one, so that its
are refused until --crowd_regions says what they are. Train with --dataset folder --data_dir my_data.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from ..errors import UsageError
from ..importing.settings import ImportSettings
from .command_line import CommandLine, written_to_output_dir

_USAGE = "msctr import [FORMAT] SOURCE OUTPUT_DIR [--flag VALUE ...]; --help lists formats and flags"
_WORDS = {1: ("source",), 2: ("source", "output_dir"), 3: ("format", "source", "output_dir")}


def main(argv: Sequence[str]) -> None:
    """Run `msctr import` with the arguments that follow it on the command line."""
    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    names = _WORDS.get(len(words), ())  # other numbers of words are left to the parser, which refuses them
    flags = [argument for name, word in zip(names, words, strict=False) for argument in (f"--{name}", word)]
    command_line = CommandLine([ImportSettings], __doc__, "import")
    command_line.usage = _USAGE
    command_line.run([*flags, *argv[len(names) :]], _import)


def _import(arguments: ImportSettings) -> None:
    from ..importing.conversion import import_export

    if arguments.source is None or arguments.output_dir is None:
        raise UsageError(f"Name the export and the folder to write: {_USAGE}.")
    output_dir = Path(arguments.output_dir)
    with written_to_output_dir(output_dir.absolute().parent):
        import_export(
            Path(arguments.source),
            output_dir,
            arguments.format,
            image_dir=Path(arguments.image_dir) if arguments.image_dir is not None else None,
            unannotated_images=arguments.unannotated_images,
            crowd_regions=arguments.crowd_regions,
            ignored_classes=arguments.ignored_classes,
            validation_share=arguments.validation_share,
            seed=arguments.seed,
            group_pattern=arguments.group_pattern,
            num_workers=arguments.num_workers,
        )
