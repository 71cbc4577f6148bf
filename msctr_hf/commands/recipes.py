"""Recipes, which are YAML files with the settings of a run, found by path or by the name of a shipped one."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..errors import UsageError

FOLDER = Path(__file__).resolve().parent.parent / "configs"  # in a clone, a symbolic link to configs/ at the top
_LAUNCHER_FOLDER = "accelerate"  # its files configure `accelerate launch`


def recipe_names() -> list[str]:
    """List the names of the shipped recipes, such as `cityscapes/hrnet_w48`."""
    paths = (path.relative_to(FOLDER).with_suffix("") for path in FOLDER.glob("**/*.yaml"))
    return sorted(path.as_posix() for path in paths if path.parts[0] != _LAUNCHER_FOLDER)


def find_recipe(config: str) -> Path:
    """Return the file that `config` names: a path (it exists, or ends in .yaml or .yml), or a shipped recipe.

    Raises:
        UsageError: If it is neither; the message lists the recipes.
    """
    path = Path(config)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise UsageError(f"`config`: the file {config} does not exist.")
    names = recipe_names()
    if config in names:
        return FOLDER / f"{config}.yaml"
    close = difflib.get_close_matches(config, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UsageError(f"`config`: {config!r} is neither a file nor a recipe.{hint} Recipes: {', '.join(names)}.")
