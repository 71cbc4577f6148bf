"""Entry point of the scripts in this folder: each runs a command of the package or of experiments/."""

import importlib
import sys
from pathlib import Path

_SCRIPTS = Path(__file__).resolve().parent


def run(module: str) -> None:
    """Import a module and call its `main` with the command line."""
    # Python puts the folder of a script first, where evaluate.py would hide the package `evaluate`; the clone goes
    # last, so that an installed msctr_hf takes precedence
    sys.path = [folder for folder in sys.path if folder != str(_SCRIPTS)] + [str(_SCRIPTS.parent)]
    importlib.import_module(module).main(sys.argv[1:])
