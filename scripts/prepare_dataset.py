"""Check a data set, and make a copy that loads faster. Nothing is uploaded.

    python scripts/prepare_dataset.py --dataset cityscapes --data_dir official       # check only
    python scripts/prepare_dataset.py --dataset cityscapes --data_dir official --output_dir parquet
    python scripts/prepare_dataset.py --dataset cityscapes --data_dir official --predecode --output_dir pixels

The check looks at every file and lists all that is broken. The copy is parquet shards with a data card, or, with
--predecode, of plain pixels that are mapped into memory: training then reads no more than its crops. An interrupted
conversion goes on where it stopped. Train with --data_dir OUTPUT_DIR.
"""

import sys
from pathlib import Path

# this folder's evaluate.py would hide the package of that name
sys.path = [folder for folder in sys.path if folder != str(Path(__file__).resolve().parent)]

from msctr_hf.arguments import PreparationArguments, exit_with_a_sentence, parse_arguments
from msctr_hf.data.preparation import prepare


def main() -> None:
    (arguments,) = parse_arguments([PreparationArguments], description=__doc__)
    folders = {
        name: Path(path) if path is not None else None
        for name, path in vars(arguments).items()
        if name in ("data_dir", "output_dir", "corrections")
    }
    prepare(
        arguments.spec,
        arguments.splits,
        copy=arguments.copy,
        predecode=arguments.predecode,
        skip_broken=arguments.skip_broken,
        num_workers=arguments.num_workers,
        **folders,
    )


if __name__ == "__main__":
    exit_with_a_sentence(main)
