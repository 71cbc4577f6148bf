"""Table of finished runs: network, data, mode, measured mIoU, seeds, device, command.

python scripts/model_zoo.py runs/quickstart runs/hrnet              # folders of runs
python scripts/model_zoo.py results/quickstart.json runs/sweep/results.json
python scripts/model_zoo.py runs/quickstart --output results/quickstart.json    # keeps the rows as JSON
"""

import sys
from pathlib import Path

# this folder's evaluate.py would hide the package of that name
sys.path = [folder for folder in sys.path if folder != str(Path(__file__).resolve().parent)]

import argparse

from msctr_hf.arguments import exit_with_a_sentence
from msctr_hf.training.model_zoo import read_rows, zoo_table
from msctr_hf.training.run_folder import write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or JSON files with rows of runs")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    options = parser.parse_args()
    rows = read_rows(options.runs)
    if options.output is not None:
        write_json(options.output, rows)
    print(zoo_table(rows))


if __name__ == "__main__":
    exit_with_a_sentence(main)
