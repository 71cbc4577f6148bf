"""What the scripts of this folder share: they run a module of the package, or of experiments/."""

import importlib
import sys
from pathlib import Path

_SCRIPTS = Path(__file__).resolve().parent


def run(module: str) -> None:
    """Call `main` of a module with the words of the command line."""
    # Python puts the folder of a script first, where evaluate.py would hide the package `evaluate`; the clone comes
    # last, so that an installed msctr_hf is preferred to that of the clone
    sys.path = [folder for folder in sys.path if folder != str(_SCRIPTS)] + [str(_SCRIPTS.parent)]
    importlib.import_module(module).main(sys.argv[1:])
