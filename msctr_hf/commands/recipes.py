"""Recipes: YAML files with the settings of a run. Those of configs/ are shipped, and found by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..errors import UsageError

FOLDER = Path(__file__).resolve().parent.parent / "configs"  # in a clone a link to the folder at the top
_NOT_RECIPES = "accelerate"  # configurations of the launcher


def recipe_names() -> list[str]:
    """Names of the shipped recipes, such as `cityscapes/hrnet_w48`."""
    paths = (path.relative_to(FOLDER).with_suffix("") for path in FOLDER.glob("**/*.yaml"))
    return sorted(path.as_posix() for path in paths if path.parts[0] != _NOT_RECIPES)


def find_recipe(config: str) -> Path:
    """The file behind `config`: a path (it ends in .yaml or .yml, or is a file), or the name of a shipped recipe.

    Raises:
        UsageError: If there is neither; the message lists the names.
    """
    path = Path(config)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise UsageError(f"`config`: there is no file {config}.")
    names = recipe_names()
    if config in names:
        return FOLDER / f"{config}.yaml"
    close = difflib.get_close_matches(config, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UsageError(f"`config`: there is no file and no recipe {config!r}.{hint} Recipes: {', '.join(names)}.")
